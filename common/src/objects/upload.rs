//! Large objects, written in parts.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, MultipartUpload, ObjectStore as _, PutMultipartOptions, PutOptions,
    PutPayload,
};

use super::store::{Store, bounded, text_of};

/// Parts under way at once: with the next, 32 MiB of memory, more for objects above 78 GiB, whose parts are longer.
const UNDER_WAY: usize = 3;

/// Most parts that S3 takes of one object.
const PARTS_MAX: u64 = 10_000;

/// All parts but the last have this length or a multiple of it, as R2 wants it; S3 takes no smaller ones than 5 MiB.
const PART_BYTES: u64 = 8 << 20;

/// The user's own field that a digest stands in: Azure takes letters and digits alone.
const DIGEST_FIELD: &str = "cicblake3";

/// What is said of an object beside its bytes. A directory of this machine keeps none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// For caches before the store, as in HTTP.
    pub cache_control: String,
    /// BLAKE3 of the object.
    pub digest: Option<String>,
}

/// An object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub bytes: u64,
    /// As [`Labels::digest`].
    pub digest: Option<String>,
}

/// An object that appears once all of its parts are there.
#[derive(Debug)]
pub struct Upload {
    inner: Box<dyn MultipartUpload>,
    under_way: FuturesUnordered<BoxFuture<'static, Result<(), String>>>,
    within: Duration,
}

/// How long the parts of an object of so many bytes are.
#[must_use]
pub fn part_bytes(size: u64) -> u64 {
    size.div_ceil(PARTS_MAX).next_multiple_of(PART_BYTES).max(PART_BYTES)
}

impl Store {
    /// Writes a small object as it stands, with its labels.
    ///
    /// # Errors
    /// The cause in words; it may have been written all the same.
    pub async fn put_labelled(
        &self,
        key: &str,
        object: Vec<Bytes>,
        labels: &Labels,
        within: Duration,
    ) -> Result<(), String> {
        let (path, attributes) = (self.literal(key)?, self.attributes(labels));
        let options = PutOptions { attributes, ..PutOptions::default() };
        let put = self.inner.put_opts(&path, PutPayload::from_iter(object), options);
        bounded(within, put).await?.map(|_| ()).map_err(|error| text_of(&error))
    }

    /// Begins an object in parts, each of which is given `within`.
    ///
    /// # Errors
    /// The cause in words.
    pub async fn begin(&self, key: &str, labels: &Labels, within: Duration) -> Result<Upload, String> {
        let (path, attributes) = (self.literal(key)?, self.attributes(labels));
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let inner = bounded(within, self.inner.put_multipart_opts(&path, options)).await?;
        let inner = inner.map_err(|error| text_of(&error))?;
        Ok(Upload { inner, under_way: FuturesUnordered::new(), within })
    }

    /// What is said of the object under `key`; `None` when there is none.
    ///
    /// # Errors
    /// The cause in words.
    pub async fn head(&self, key: &str, within: Duration) -> Result<Option<Head>, String> {
        let path = self.literal(key)?;
        let options = GetOptions { head: true, ..GetOptions::default() };
        match bounded(within, self.inner.get_opts(&path, options)).await? {
            Ok(found) => {
                let digest = found.attributes.get(&Attribute::Metadata(DIGEST_FIELD.into()));
                Ok(Some(Head { bytes: found.meta.size, digest: digest.map(|value| value.to_string()) }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(text_of(&error)),
        }
    }

    fn attributes(&self, labels: &Labels) -> Attributes {
        let mut attributes = Attributes::new();
        if !self.is_directory() {
            attributes.insert(Attribute::CacheControl, labels.cache_control.clone().into());
            if let Some(digest) = &labels.digest {
                attributes.insert(Attribute::Metadata(DIGEST_FIELD.into()), digest.clone().into());
            }
        }
        attributes
    }

    /// The key as others name it, who escape nothing.
    pub(super) fn literal(&self, key: &str) -> Result<Path, String> {
        let whole = [self.prefix.as_ref(), key].into_iter().filter(|part| !part.is_empty());
        Path::parse(whole.collect::<Vec<_>>().join("/")).map_err(|error| text_of(&error))
    }
}

impl Upload {
    /// Waits until there is room for a part among those that are under way: read before that, it would be one more in memory.
    ///
    /// # Errors
    /// Why an earlier part cannot be written.
    pub async fn room(&mut self) -> Result<(), String> {
        while self.under_way.len() >= UNDER_WAY {
            self.one().await?;
        }
        Ok(())
    }

    /// Sends the next part, as soon as there is room for it.
    ///
    /// # Errors
    /// Why a part, this one or an earlier, cannot be written.
    pub async fn part(&mut self, bytes: Vec<Bytes>) -> Result<(), String> {
        self.room().await?;
        let (put, within) = (self.inner.put_part(PutPayload::from_iter(bytes)), self.within);
        let put = async move { bounded(within, put).await?.map_err(|error| text_of(&error)) };
        self.under_way.push(put.boxed());
        Ok(())
    }

    /// Has the object appear.
    ///
    /// # Errors
    /// The cause in words; it may have appeared all the same.
    pub async fn finish(&mut self) -> Result<(), String> {
        while !self.under_way.is_empty() {
            self.one().await?;
        }
        bounded(self.within, self.inner.complete()).await?.map(|_| ()).map_err(|error| text_of(&error))
    }

    /// Takes back what was sent. A store that does not answer keeps it until its own rules remove it.
    pub async fn give_up(mut self) {
        self.under_way = FuturesUnordered::new();
        let _ = bounded(self.within, self.inner.abort()).await;
    }

    async fn one(&mut self) -> Result<(), String> {
        self.under_way.next().await.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_for_the_largest_objects() {
        for (size, expected) in [(0, 8), (5 << 40, 528), (80 << 30, 16), (1 << 30, 8)] {
            let part = part_bytes(size);
            assert_eq!(part, expected << 20, "{size}");
            assert!(size.div_ceil(part) <= PARTS_MAX);
        }
    }
}
