//! What membership tells the engine, which stands above it.

use std::pin::Pin;

use protocol::ClientId;
use tokio::sync::oneshot;

use crate::net::store::messages::Record;

/// What it tells.
pub(crate) enum ToEngine {
    /// Something for the audit log.
    Record(Record),
    /// An operator holds a site back from every run, or ends that.
    Hold { client: ClientId, held: bool, reply: oneshot::Sender<()> },
}

/// Who hears it. This is a trait, and no channel of its own, so that what membership tells keeps its place among all else that the engine
/// hears: a site that was enrolled is written down before it joins.
pub(crate) trait Listener: Send + Sync {
    /// Hands it in, and waits for a place in the queue; `false` when nobody listens any more.
    fn hear(&self, told: ToEngine) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}
