//! What rooms above tell the store of members, to be kept and to be written into the audit log.

use protocol::ClientId;

/// What an operator says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Approved,
    Refused,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Refused => "refused",
        }
    }
}

/// What happens to the membership.
pub(crate) enum Record {
    Invited {
        site: ClientId,
        expires: u64,
        by: String,
    },
    Enrolled {
        site: ClientId,
        key_sha256: String,
    },
    Renewed {
        site: ClientId,
        key_sha256: String,
    },
    InviteReused {
        token_sha256: String,
    },
    EnrolmentsRefused {
        count: u64,
    },
    Revoked {
        site: ClientId,
        before: u64,
        by: String,
    },
    /// A site's ledger does not go on from the one that is remembered, or none was named.
    LedgerRefused {
        site: ClientId,
        address: String,
        reason: String,
    },
    /// A site has charged the loss of the ledger that is remembered, and goes on with another one.
    LedgerReplaced {
        site: ClientId,
        address: String,
    },
    /// Connections of a site end each other.
    Alternating {
        site: ClientId,
        address: String,
        replaced_address: String,
        times: u64,
    },
    Quarantined {
        site: ClientId,
        reason: String,
        by: String,
    },
    QuarantineEnded {
        site: ClientId,
        by: String,
    },
    Asked {
        site: ClientId,
        key_sha256: String,
        address: String,
    },
    Decided {
        site: ClientId,
        key_sha256: String,
        verdict: Verdict,
        by: String,
    },
}
