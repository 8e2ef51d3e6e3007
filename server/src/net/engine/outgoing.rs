//! The bytes of a round's model: made once, however many sites they go to.

use std::sync::Arc;

use bytes::Bytes;
use protocol::{BroadcastCodec, Parameters, Task};

use crate::net::transport::frames::model_bytes;

/// The last model that was sent in a short form, and its bytes.
#[derive(Default)]
pub(crate) struct Broadcast(Option<(Arc<Parameters>, Bytes)>);

impl Broadcast {
    /// Whether the bytes of a task's model are at hand.
    pub(crate) fn has(&self, model: &Arc<Parameters>, task: &Task) -> bool {
        let is_kept = self.0.as_ref().is_some_and(|(sent, _)| Arc::ptr_eq(sent, model));
        is_kept || task.spec.update.broadcast == BroadcastCodec::Exact
    }

    /// The bytes of a task's model. Those of an exact one are the model's own memory, and are not kept.
    pub(crate) fn bytes(&mut self, model: &Arc<Parameters>, task: &Task) -> Bytes {
        let codec = task.spec.update.broadcast;
        match &self.0 {
            _ if codec == BroadcastCodec::Exact => model_bytes(model),
            Some((sent, bytes)) if Arc::ptr_eq(sent, model) => bytes.clone(),
            _ => {
                let bytes = Bytes::from(codec.pack(model.values()));
                self.0 = Some((Arc::clone(model), bytes.clone()));
                bytes
            }
        }
    }
}
