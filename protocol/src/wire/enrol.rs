//! How a site gets its certificate: one request, one answer. Who has an invite shows no certificate on the connection; who has a
//! certificate shows it, and gets the next one.

use serde::{Deserialize, Serialize};

use crate::Token;

/// Asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The invite's; none to renew the certificate that the connection shows.
    pub token: Option<Token>,
    /// A certificate signing request (RFC 2986) in DER. Its public key alone is taken from it.
    pub csr_der: Vec<u8>,
    /// Name and version of the site's software, for the operator's log.
    pub software: String,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// The site is a member now.
    Issued {
        /// Its certificate and those between it and the root, in PEM.
        chain_pem: String,
        /// The federation's root, in PEM.
        root_pem: String,
    },
    /// It is not.
    Refused(EnrolRejection),
    /// An operator has not approved it yet: ask again in a few seconds, with the same key.
    Waiting,
}

/// Why there is no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum EnrolRejection {
    /// The server never gave such an invite, or has taken it back.
    #[error("the server does not know this invite, or has taken it back; ask the operator for a new one")]
    Unknown,
    /// Its time is over.
    #[error("the invite has expired; ask the operator for a new one")]
    Expired,
    /// Somebody has used it, with another key.
    #[error(
        "the invite has been used already; if it was not you, tell the operator at once: somebody else has your site's certificate"
    )]
    Used,
    /// The signing request is none.
    #[error("the certificate signing request is not understood; install the same release on both sides")]
    Request,
    /// There is no token, and no certificate of a site that could be renewed.
    #[error("only a site whose certificate is still good can renew it; ask the operator for an invite")]
    NotASite,
    /// The server has no issuing key, or cannot use it.
    #[error(
        "the server cannot issue certificates at the moment; tell the operator, the server's log says why"
    )]
    Unable,
    /// An operator looked at the request and refused it.
    #[error("the operator has refused this request; speak with the operator, and ask for a new invite")]
    Denied,
}
