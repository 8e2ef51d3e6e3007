//! What sessions tell whoever attends to operators, above them.

use quinn::Connection;
use tokio::sync::OwnedSemaphorePermit;

/// An operator whose certificate is good has come.
pub(crate) struct OperatorArrived {
    pub(crate) connection: Connection,
    /// The name in the certificate.
    pub(crate) name: String,
    /// One of the seats of all connections, for as long as this one is attended to.
    pub(crate) seat: OwnedSemaphorePermit,
}
