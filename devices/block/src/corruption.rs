//! What an image's driver tells when its tables contradict each other.

use std::fmt;
use std::sync::Arc;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The node.
    pub node: String,
    /// The driver's name.
    pub driver: &'static str,
    /// What contradicts what.
    pub message: String,
    /// Where in the file, and how many bytes, if it is about a place.
    pub place: Option<(u64, u64)>,
    /// Whether it was found while the image was being written, which is over now: the image says so
    /// itself from here on.
    pub fatal: bool,
}

/// Who is told: once for each image, on whatever thread uses it. It must not block.
#[derive(Clone)]
pub struct CorruptionSink(Arc<dyn Fn(Corruption) + Send + Sync>);

impl CorruptionSink {
    /// Tells by calling `tell`.
    pub fn new(tell: impl Fn(Corruption) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells.
    pub fn send(&self, corruption: Corruption) {
        (self.0)(corruption);
    }
}

impl fmt::Debug for CorruptionSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CorruptionSink")
    }
}

impl Default for CorruptionSink {
    /// Tells the log.
    fn default() -> Self {
        Self::new(|corruption| {
            let Corruption { node, message, .. } = corruption;
            tracing::error!(node, "the image is corrupt: {message}");
        })
    }
}
