//! The time of this machine, as sites and policies are told it.

use std::time::SystemTime;

use protocol::Time;

/// The time of this machine, since the Unix epoch.
pub(super) fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time::ZERO + since
}
