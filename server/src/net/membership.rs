//! Who belongs to the federation: the authority that certifies, invites and their approval, who is void or in quarantine, and the server's own
//! credentials. It knows no run and no session.

pub(super) mod authority;
pub(super) mod credentials;
pub(super) mod members;
pub(super) mod messages;
