//! The object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage, a directory.
//!
//! The crate `object_store` is named in this folder alone. Credentials come from where each cloud's own tools have them: the
//! environment (`AWS_ACCESS_KEY_ID` and the like) or the VM's role.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _, PutPayload};
use url::Url;

/// What may be said behind a URL's `?`: what two buckets of one fleet can differ in.
const OPTIONS: [&str; 4] = ["region", "endpoint", "allow_http", "virtual_hosted_style_request"];

/// Variables with these beginnings are the stores' own.
const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// An attempt that has no answer by then is made again, as long as there is time. Sixteen megabytes take this long at 5 Mbit/s.
const ATTEMPT: &str = "30 seconds";

/// Why a store cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("is no URL: {cause}")]
    Url { cause: String },
    #[error("says {option:?}, and may say {}", OPTIONS.join(", "))]
    Option { option: String },
    #[error("has a user or password in it: credentials come from the environment or the VM's role")]
    Credentials,
    #[error(
        "has a host, {host:?}, before its path: a directory of this machine has three slashes, file:///…"
    )]
    FileHost { host: String },
    #[error("cannot be used: {cause}")]
    Unusable { cause: String },
}

/// One bucket or directory.
#[derive(Debug, Clone)]
pub struct Store {
    /// For people: its URL without options.
    pub name: Arc<str>,
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// Where it is a directory of this machine.
    directory: Option<PathBuf>,
}

/// The store, and perhaps a second one.
#[derive(Debug, Clone)]
pub struct Stores {
    pub all: Vec<Store>,
}

impl Stores {
    /// Opens the stores at `urls` with the credentials of this process's environment, without asking them anything.
    ///
    /// # Errors
    /// The place of the URL that cannot be used among them, and why.
    pub fn open<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, (usize, StoreError)> {
        let of_stores = |variable: &String| VARIABLES.iter().any(|prefix| variable.starts_with(prefix));
        Self::open_with(urls, std::env::vars().filter(|(variable, _)| of_stores(variable)))
    }

    /// The same with these variables for an environment.
    ///
    /// # Errors
    /// As [`Stores::open`].
    pub fn open_with<'a, K: Into<String>, V: Into<String>>(
        urls: impl IntoIterator<Item = &'a str>,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, (usize, StoreError)> {
        let environment: Vec<(String, String)> =
            environment.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let open = |(place, url)| Store::open(url, &environment).map_err(|error| (place, error));
        Ok(Self { all: urls.into_iter().enumerate().map(open).collect::<Result<_, _>>()? })
    }
}

impl Store {
    fn open(text: &str, environment: &[(String, String)]) -> Result<Self, StoreError> {
        let mut url = Url::parse(text).map_err(|error| StoreError::Url { cause: error.to_string() })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(StoreError::Credentials);
        }
        let said: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        if let Some((option, _)) = said.iter().find(|(option, _)| !OPTIONS.contains(&option.as_str())) {
            return Err(StoreError::Option { option: option.clone() });
        }
        url.set_query(None);
        let name = Arc::from(url.as_str());
        let unusable = |error: object_store::Error| StoreError::Unusable { cause: text_of(&error) };
        if url.scheme() == "file" {
            if let Some(host) = url.host_str() {
                return Err(StoreError::FileHost { host: host.to_owned() });
            }
            let prefix = Path::from_url_path(url.path())
                .map_err(|error| StoreError::Unusable { cause: error.to_string() })?;
            let inner = Arc::new(LocalFileSystem::new().with_fsync(true));
            let directory = inner.path_to_filesystem(&prefix).map_err(unusable)?;
            return Ok(Self { name, inner, prefix, directory: Some(directory) });
        }
        // What it uses without asking; this program has one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fixed = ("timeout".to_owned(), ATTEMPT.to_owned());
        let options = environment.iter().cloned().chain([fixed]).chain(said);
        let (inner, prefix) = object_store::parse_url_opts(&url, options).map_err(unusable)?;
        Ok(Self { name, inner: inner.into(), prefix, directory: None })
    }

    /// Writes `object` under `key`: all of it or nothing is seen there.
    ///
    /// # Errors
    /// The cause in words; it may have been written all the same.
    pub async fn put(&self, key: &str, object: Bytes, within: Duration) -> Result<(), String> {
        if let Some(directory) = &self.directory {
            // What is in there is for this user alone; what was made by somebody else is theirs to guard.
            let mut builder = tokio::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            bounded(within, builder.create(directory)).await?.map_err(|error| error.to_string())?;
        }
        let path = self.path(key);
        let put = self.inner.put(&path, PutPayload::from_bytes(object));
        bounded(within, put).await?.map(|_| ()).map_err(|error| text_of(&error))
    }

    /// What is under `key`; `None` when nothing is.
    ///
    /// # Errors
    /// The cause in words: no answer, or more than `bytes_max`.
    pub async fn get(&self, key: &str, bytes_max: u64, within: Duration) -> Result<Option<Bytes>, String> {
        let path = self.path(key);
        let get = async {
            let found = match self.inner.get(&path).await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(text_of(&error)),
            };
            if found.meta.size > bytes_max {
                return Err(format!("it has {} bytes, more than {bytes_max}", found.meta.size));
            }
            found.bytes().await.map(Some).map_err(|error| text_of(&error))
        };
        bounded(within, get).await?
    }

    /// `length` bytes from `begin` on of what is under `key`, in the parts that they come in, fewer where it ends before; `None`
    /// when nothing is there.
    ///
    /// # Errors
    /// The cause in words: no answer, or it begins after its end.
    pub async fn get_range(
        &self,
        key: &str,
        begin: u64,
        length: u64,
        within: Duration,
    ) -> Result<Option<Vec<Bytes>>, String> {
        let get = async {
            match self.read_range(key, begin, length, within).await? {
                Some(parts) => parts.try_collect::<Vec<Bytes>>().await.map(Some),
                None => Ok(None),
            }
        };
        bounded(within, get).await?
    }

    /// As [`Store::get_range`], as it comes; `within` is for the head of the answer.
    ///
    /// # Errors
    /// The cause in words: no answer, or it begins after its end.
    pub async fn read_range(
        &self,
        key: &str,
        begin: u64,
        length: u64,
        within: Duration,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, String>>>, String> {
        let path = self.literal(key)?;
        let range = Some((begin..begin.saturating_add(length)).into());
        let options = GetOptions { range, ..GetOptions::default() };
        match bounded(within, self.inner.get_opts(&path, options)).await? {
            Ok(found) => Ok(Some(found.into_stream().map_err(|error| text_of(&error)).boxed())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(text_of(&error)),
        }
    }

    /// Names below `folder`, sorted.
    ///
    /// # Errors
    /// The cause in words.
    pub async fn list(&self, folder: &str, within: Duration) -> Result<Vec<String>, String> {
        let folder = self.path(folder);
        let list = self.inner.list(Some(&folder)).try_collect::<Vec<_>>();
        let found = bounded(within, list).await?.map_err(|error| text_of(&error))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        let mut names: Vec<String> = found.iter().filter_map(|object| name(&object.location)).collect();
        names.sort();
        Ok(names)
    }

    /// Removes what is under `key`; that nothing is there counts as done.
    ///
    /// # Errors
    /// The cause in words.
    pub async fn delete(&self, key: &str, within: Duration) -> Result<(), String> {
        self.delete_at(&self.path(key), within).await
    }

    async fn delete_at(&self, path: &Path, within: Duration) -> Result<(), String> {
        match bounded(within, self.inner.delete(path)).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(text_of(&error)),
        }
    }

    /// As [`Store::delete`], of a key as others name it.
    ///
    /// # Errors
    /// The cause in words.
    pub async fn delete_literal(&self, key: &str, within: Duration) -> Result<(), String> {
        let path = self.literal(key)?;
        self.delete_at(&path, within).await
    }

    /// Whether it is a directory of this machine.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.directory.is_some()
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }
}

pub(super) async fn bounded<T>(within: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(within, work)
        .await
        .map_err(|_| format!("no answer within {} ms", within.as_millis()))
}

/// With its causes, which say most, on one line.
pub(super) fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
