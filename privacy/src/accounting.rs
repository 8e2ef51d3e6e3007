//! How much a run has given away: epsilon at a delta, from the events of its ledger.
//!
//! Two accountants are written out. Renyi differential privacy ([`rdp`]) is rigorous for the integer noise that is
//! really added, and fast; the privacy loss distribution is tighter. Unsampled Gaussian releases have an exact
//! answer ([`gaussian`]). Nothing here draws noise or looks at an update, and no accountant ever answers 0 to a question
//! it does not understand: it refuses.

mod event;

pub use event::{AccountingError, EVENT_VERSION, Event, EventError, Mechanism, Relation};
