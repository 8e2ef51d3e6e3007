//! Object storage in memory that takes its time for what is large.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_core::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct SlowBucket {
    bucket: InMemory,
    bytes_min: u64,
    wait: Duration,
    begun: AtomicU32,
    ended: AtomicU32,
}

impl SlowBucket {
    /// One that takes `wait` to store an object of `bytes_min` bytes or more.
    pub(crate) fn new(bytes_min: u64, wait: Duration) -> Self {
        Self { bucket: InMemory::new(), bytes_min, wait, begun: AtomicU32::new(0), ended: AtomicU32::new(0) }
    }

    /// How many large objects were or are being stored.
    pub(crate) fn slow_begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }

    /// How many of them are stored.
    pub(crate) fn slow_ended(&self) -> u32 {
        self.ended.load(Ordering::SeqCst)
    }
}

impl fmt::Display for SlowBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("slow")
    }
}

#[async_trait::async_trait]
impl ObjectStore for SlowBucket {
    async fn put_opts(&self, place: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let is_slow = payload.content_length() as u64 >= self.bytes_min;
        if is_slow {
            self.begun.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(self.wait).await;
        }
        let stored = self.bucket.put_opts(place, payload, options).await;
        if is_slow {
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        stored
    }

    async fn put_multipart_opts(
        &self,
        place: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.bucket.put_multipart_opts(place, options).await
    }

    async fn get_opts(&self, place: &Path, options: GetOptions) -> Result<GetResult> {
        self.bucket.get_opts(place, options).await
    }

    fn delete_stream(&self, places: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.bucket.delete_stream(places)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.bucket.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.bucket.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.bucket.copy_opts(from, to, options).await
    }
}
