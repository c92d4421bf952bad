//! Where a model is to be had beside its own directory.

use serde::{Deserialize, Serialize};
use url::Url;

use crate::assignment::ModelSpec;

/// Stands for the region of the node that looks.
const REGION: &str = "{region}";

/// An absolute path, what can be mounted, or the URL of an object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// A directory that the engine can load from, such as one of a network's file system.
    Directory(String),
    /// A file system that the node mounts; see [`mount_command`].
    Mount(String),
    /// What the model's own directory is filled from.
    Store(String),
}

/// Why a source is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSource {
    #[error("{0:?} is neither an absolute path nor a URL such as s3://bucket/prefix or nfs://server/export")]
    Neither(String),
    #[error("{url:?} cannot be mounted: {cause}")]
    NoMount { url: String, cause: &'static str },
}

impl Source {
    /// Every place of `model`, in the order in which they are tried.
    pub fn places(model: &ModelSpec) -> impl Iterator<Item = Self> + use<'_> {
        std::iter::once(Self::Directory(model.path.clone())).chain(model.sources.iter().cloned())
    }

    /// The same as a node of `region` takes it: each `{region}` is its region's name.
    #[must_use]
    pub fn in_region(self, region: &str) -> Self {
        let put = |text: String| text.replace(REGION, region);
        match self {
            Self::Directory(text) => Self::Directory(put(text)),
            Self::Mount(text) => Self::Mount(put(text)),
            Self::Store(text) => Self::Store(put(text)),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Directory(text) | Self::Mount(text) | Self::Store(text) => text,
        }
    }
}

impl TryFrom<String> for Source {
    type Error = NoSource;

    fn try_from(text: String) -> Result<Self, NoSource> {
        let is_scheme = |scheme: &str| {
            let is_of_one = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'-';
            !scheme.is_empty() && scheme.bytes().all(is_of_one)
        };
        match text.split_once("://") {
            _ if text.starts_with('/') => Ok(Self::Directory(text)),
            Some(("nfs" | "efs" | "s3fs" | "mount-s3" | "bind", _)) => {
                mount_command(&text, "/").map(|_| Self::Mount(text))
            }
            Some((scheme, rest)) if is_scheme(scheme) && !rest.is_empty() => Ok(Self::Store(text)),
            _ => Err(NoSource::Neither(text)),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        match source {
            Source::Directory(text) | Source::Mount(text) | Source::Store(text) => text,
        }
    }
}

/// Whether each region has a place of its own there.
#[must_use]
pub fn is_regional(text: &str) -> bool {
    text.contains(REGION)
}

/// `url` without its options, for people.
#[must_use]
pub fn without_options(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// The name of the directory that `url` is mounted on: readable, and of no other URL.
#[must_use]
pub fn mount_name(url: &str) -> String {
    const CHARS_MAX: usize = 48;
    let plain = |char: char| if char.is_ascii_alphanumeric() { char } else { '-' };
    let shown: String = without_options(url).chars().take(CHARS_MAX).map(plain).collect();
    // FNV-1a: two URLs of one cluster, not two of an enemy's.
    let hash = url.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{shown}-{hash:016x}")
}

/// Program and arguments that mount `url` on the directory `at`, for reading only.
///
/// | URL | what runs | options beside those of the URL |
/// |---|---|---|
/// | `nfs://server/export` | `mount -t nfs` | those that AWS and Google advise: 4.1, reads of 1 MiB, hard, 60 s |
/// | `efs://fs-id/path` | `mount -t efs` of amazon-efs-utils | TLS |
/// | `s3fs://bucket/prefix` | `s3fs` | |
/// | `mount-s3://bucket/prefix` | `mount-s3` | |
/// | `bind:///path` | `mount --bind` | |
///
/// Each pair of the URL's query is one more option: `?url=http://gateway:9000&use_path_request_style`.
///
/// # Errors
/// What is wrong with the URL.
pub fn mount_command(url: &str, at: &str) -> Result<Vec<String>, NoSource> {
    let wrong = |cause| NoSource::NoMount { url: url.to_owned(), cause };
    let parsed = Url::parse(url).map_err(|_| wrong("it is no URL"))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong("credentials belong into the agent's environment"));
    }
    let host = parsed.host_str().unwrap_or_default();
    let port = parsed.port().map(|port| format!("port={port}"));
    let path = parsed.path();
    if (host.is_empty()) != (parsed.scheme() == "bind") {
        return Err(wrong(if host.is_empty() { "it names no server or bucket" } else { "it has a host" }));
    }
    if path.contains('%') {
        return Err(wrong("its path has a character that a URL has to encode"));
    }
    // A word that begins like an option would be one to the program.
    if host.starts_with('-') {
        return Err(wrong("its server or bucket begins with a dash"));
    }
    let pair = |(key, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
        if value.is_empty() { key.into_owned() } else { format!("{key}={value}") }
    };
    let said: Vec<String> = parsed.query_pairs().map(pair).chain(port).collect();
    if said.iter().any(|option| option.contains([',', ' ', '\n']) || option.starts_with('-')) {
        return Err(wrong("an option has a comma or a space, or begins with a dash"));
    }
    let changes = ["rw", "remount", "rbind", "move", "read-write"];
    if said.iter().any(|option| changes.contains(&option.as_str())) {
        return Err(wrong("models are mounted for reading only"));
    }
    // The last of two that contradict each other counts.
    let options = |first: &[&str]| {
        let said = said.iter().map(String::as_str);
        first.iter().copied().chain(said).chain(["ro"]).collect::<Vec<&str>>().join(",")
    };
    let prefix = path.trim_matches('/');
    let words: Vec<String> = match parsed.scheme() {
        "nfs" => {
            let first =
                ["nfsvers=4.1", "rsize=1048576", "hard", "timeo=600", "retrans=2", "retry=0", "noresvport"];
            vec![
                "mount".into(),
                "-t".into(),
                "nfs".into(),
                "-o".into(),
                options(&first),
                format!("{host}:{path}"),
                at.into(),
            ]
        }
        "efs" => {
            let path = if path.is_empty() { "/" } else { path };
            vec![
                "mount".into(),
                "-t".into(),
                "efs".into(),
                "-o".into(),
                options(&["tls"]),
                format!("{host}:{path}"),
                at.into(),
            ]
        }
        "s3fs" => {
            let bucket = if prefix.is_empty() { host.to_owned() } else { format!("{host}:/{prefix}") };
            vec!["s3fs".into(), bucket, at.into(), "-o".into(), options(&[])]
        }
        "mount-s3" => {
            let prefix = (!prefix.is_empty()).then(|| ["--prefix".to_owned(), format!("{prefix}/")]);
            let said = said.iter().map(|option| format!("--{option}"));
            let first = ["mount-s3", "--read-only"].map(str::to_owned).into_iter();
            first
                .chain(prefix.into_iter().flatten())
                .chain(said)
                .chain([host.to_owned(), at.to_owned()])
                .collect()
        }
        "bind" if prefix.is_empty() => return Err(wrong("it names no directory")),
        "bind" => vec!["mount".into(), "-o".into(), options(&["bind"]), path.to_owned(), at.into()],
        _ => return Err(wrong("nothing mounts it")),
    };
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_absolute_path_or_a_url() {
        for (text, expected) in [
            ("/mnt/efs/llama", Some(Source::Directory("/mnt/efs/llama".to_owned()))),
            ("s3://models/llama", Some(Source::Store("s3://models/llama".to_owned()))),
            ("file:///srv/llama", Some(Source::Store("file:///srv/llama".to_owned()))),
            ("nfs://filer/models", Some(Source::Mount("nfs://filer/models".to_owned()))),
            ("s3://models-{region}/llama", Some(Source::Store("s3://models-{region}/llama".to_owned()))),
            ("models/llama", None),
            ("s3://", None),
            ("nfs:///models", None),
            ("bind://host/models", None),
            ("bind://", None),
            ("nfs://filer/models?rw", None),
            ("s3fs://-o/models", None),
            ("nfs://filer/models?a,b", None),
            ("nfs://filer/my%20models", None),
            ("nfs://me:secret@filer/models", None),
            ("://models", None),
            ("s 3://models", None),
            ("", None),
        ] {
            let parsed = Source::try_from(text.to_owned());
            assert_eq!(parsed.clone().ok(), expected, "{text}");
            if let Err(error) = parsed {
                assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
            }
        }
    }

    #[test]
    fn a_regional_source_is_that_of_the_nodes_own_region() {
        for (text, expected) in [
            ("s3://models-{region}/m?region={region}", "s3://models-eu-west-1/m?region=eu-west-1"),
            ("nfs://filer.{region}/m", "nfs://filer.eu-west-1/m"),
            ("/mnt/{region}/m", "/mnt/eu-west-1/m"),
            ("s3://models/m", "s3://models/m"),
        ] {
            let source = Source::try_from(text.to_owned()).expect(text);
            assert_eq!(source.in_region("eu-west-1").as_str(), expected);
            assert_eq!(is_regional(text), text != expected);
        }
    }

    #[test]
    fn each_kind_of_mount_has_its_command() {
        for (url, expected) in [
            (
                "nfs://filer:2050/export/models",
                "mount -t nfs -o nfsvers=4.1,rsize=1048576,hard,timeo=600,retrans=2,retry=0,noresvport,port=2050,ro \
                 filer:/export/models /at",
            ),
            ("efs://fs-0123/models?iam", "mount -t efs -o tls,iam,ro fs-0123:/models /at"),
            ("efs://fs-0123", "mount -t efs -o tls,ro fs-0123:/ /at"),
            ("s3fs://models?use_cache=/nvme", "s3fs models /at -o use_cache=/nvme,ro"),
            ("s3fs://models/llama/70b/", "s3fs models:/llama/70b /at -o ro"),
            (
                "mount-s3://models/llama?region=eu-west-1&allow-other",
                "mount-s3 --read-only --prefix llama/ --region=eu-west-1 --allow-other models /at",
            ),
            ("bind:///srv/models", "mount -o bind,ro /srv/models /at"),
        ] {
            assert_eq!(mount_command(url, "/at").map(|words| words.join(" ")).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn mounts_of_two_urls_have_two_names() {
        let (one, other) = (mount_name("nfs://filer/a?x=1"), mount_name("nfs://filer/a?x=2"));
        assert_ne!(one, other);
        assert!(one.starts_with("nfs---filer-a-") && !one.contains('/'), "{one}");
    }
}
