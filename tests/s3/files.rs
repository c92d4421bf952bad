//! `s3s-fs` with reads that are worth their round trip.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use s3s::dto::*;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// That of the package reads 4 KiB at a time, which is all that a client of it would measure.
const CHUNK_BYTES: u64 = 256 << 10;

/// The buckets of a directory.
#[derive(Debug)]
pub(crate) struct Buckets {
    pub(crate) inner: FileSystem,
    pub(crate) dir: PathBuf,
}

/// Methods that are the package's own.
macro_rules! passed_on {
    ($($name:ident: $input:ident -> $output:ident;)*) => {
        $(
            // As `async_trait` writes it, which does not see what a macro makes.
            fn $name<'life0, 'async_trait>(
                &'life0 self,
                request: S3Request<$input>,
            ) -> BoxFuture<'async_trait, S3Result<S3Response<$output>>>
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                self.inner.$name(request)
            }
        )*
    };
}

#[async_trait::async_trait]
impl S3 for Buckets {
    passed_on! {
        create_bucket: CreateBucketInput -> CreateBucketOutput;
        copy_object: CopyObjectInput -> CopyObjectOutput;
        delete_bucket: DeleteBucketInput -> DeleteBucketOutput;
        delete_object: DeleteObjectInput -> DeleteObjectOutput;
        delete_objects: DeleteObjectsInput -> DeleteObjectsOutput;
        get_bucket_location: GetBucketLocationInput -> GetBucketLocationOutput;
        head_bucket: HeadBucketInput -> HeadBucketOutput;
        head_object: HeadObjectInput -> HeadObjectOutput;
        list_buckets: ListBucketsInput -> ListBucketsOutput;
        list_objects: ListObjectsInput -> ListObjectsOutput;
        list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output;
        put_object: PutObjectInput -> PutObjectOutput;
        create_multipart_upload: CreateMultipartUploadInput -> CreateMultipartUploadOutput;
        upload_part: UploadPartInput -> UploadPartOutput;
        upload_part_copy: UploadPartCopyInput -> UploadPartCopyOutput;
        list_parts: ListPartsInput -> ListPartsOutput;
        complete_multipart_upload: CompleteMultipartUploadInput -> CompleteMultipartUploadOutput;
        abort_multipart_upload: AbortMultipartUploadInput -> AbortMultipartUploadOutput;
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        // Names that lead elsewhere are refused by the package, before this is opened.
        let place = self.dir.join(&request.input.bucket).join(&request.input.key);
        let mut response = self.inner.get_object(request).await?;
        let length = response.output.content_length.and_then(|length| u64::try_from(length).ok());
        let length = length.ok_or_else(|| internal("a length is missing"))?;
        let begin = match &response.output.content_range {
            Some(range) => begin_of(range).ok_or_else(|| internal("a range cannot be read"))?,
            None => 0,
        };
        let open = move || {
            let mut file = File::open(place)?;
            file.seek(SeekFrom::Start(begin))?;
            Ok::<_, io::Error>(file.take(length))
        };
        let file = tokio::task::spawn_blocking(open).await;
        let file = file.map_err(|error| internal(&error.to_string()))?;
        let file = file.map_err(|error| internal(&error.to_string()))?;
        let chunks = stream::try_unfold(file, |mut file| async move {
            let read = move || {
                let wanted = file.limit().min(CHUNK_BYTES);
                let mut chunk = Vec::with_capacity(usize::try_from(wanted).map_err(io::Error::other)?);
                let count = (&mut file).take(wanted).read_to_end(&mut chunk)?;
                if count as u64 != wanted {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                Ok((count > 0).then(|| (Bytes::from(chunk), file)))
            };
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
        });
        response.output.body = Some(StreamingBlob::wrap(chunks));
        Ok(response)
    }
}

/// Of `bytes 5-9/20`.
fn begin_of(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn internal(why: &str) -> S3Error {
    S3Error::with_message(S3ErrorCode::InternalError, why.to_owned())
}
