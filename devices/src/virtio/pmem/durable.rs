//! Who makes durable what the guest wrote into memory.

use std::io;
use std::sync::Arc;

use block::IoThread;
use fdset::OpenFile;

/// Whom to tell how it ended.
pub type Synced = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Who makes what the guest wrote durable.
pub trait Durable: Send + Sync {
    /// Begins with all that is written by now, and waits for nothing. `done` is called from any
    /// thread when it has ended; where nobody is left who could do it, never.
    fn sync(&self, done: Synced);
}

/// A file that is mapped: an io-thread syncs it.
pub struct FileMemory {
    file: Arc<OpenFile>,
    iothread: IoThread,
}

impl FileMemory {
    /// The memory behind `file`.
    #[must_use]
    pub fn new(file: OpenFile, iothread: IoThread) -> Self {
        Self {
            file: Arc::new(file),
            iothread,
        }
    }
}

impl Durable for FileMemory {
    fn sync(&self, done: Synced) {
        let file = Arc::clone(&self.file);
        self.iothread
            .spawn(move |io| async move { done(io.sync(&file).await.map(drop)) });
    }
}
