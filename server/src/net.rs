//! The server around the coordinator: a QUIC port, a session per connection, one engine that works on runs, one folder that
//! remembers.
//!
//! [`Server`] puts them together. What a model is, the embedding program says through [`ModelRoom`]. A client can make the server refuse it,
//! never make it stop; what it cannot refuse is bounded: connections, handshakes, bytes in flight, time. Only a disk that fails stops the
//! server.
//!
//! Reading order, from the ground up; each room imports those before it, and none behind it (`tests/tidy.rs`): `transport` (the port, frames,
//! limits by address) · `store` (what is remembered: rows, models, leases, backups, the audit log) · `membership` (who belongs here, and
//! who says so) · `engine` (what works on runs, and the service that operators are answered by) · `sessions` (connections of sites) ·
//! `operators` (their requests over QUIC) · `admin` (the same over HTTP) · `server` (all of them, started and ended). What a room hears
//! from those above it lies in its `messages.rs`.

mod admin;
mod engine;
mod membership;
mod operators;
mod server;
mod sessions;
mod store;
mod transport;

pub use admin::{AdminConfig, AdminError, AdminToken, TokenError};
pub use engine::{InitialModel, LiveRuns, ModelRoom};
pub use membership::authority::{
    Authority, AuthorityError, Identity, Issuing, Passphrase, RevocationList, RevocationListError,
    SERVER_NAME,
};
pub use membership::members::Approval;
pub use server::{ServeError, Server, ServerConfig};
pub use store::archive::{ArchiveError, ArchivedModel};
pub use store::audit::AuditError;
pub use store::paths::real_path;
pub use store::{
    Agreement, BackupError, BlobError, BooksError, BroughtBack, Database, DatabaseError, HANDED_OVER, Lost,
    Objects, ObjectsError, Postgres, Store, StoreError, StoredModel, StoredRun, Submission, TransferError,
    Transferred,
};
pub use transport::endpoint::EndpointError;
pub use transport::limits::Limits;
pub use transport::peer::{NotASite, root_sha256_of_pem, site_of_pem, validity_of_der, validity_of_pem};
