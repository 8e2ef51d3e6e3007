//! Attacks on private data, made to succeed where nothing protects it and to fail where something does.
//!
//! [`LinearAttack`] divides a picture out of the update of a dense layer; [`ConvolutionAttack`] searches for the picture
//! that explains the update of a small convolutional network; [`MembershipAttack`] tells from a model alone who helped to
//! train it. Each is run against a federation without privacy and against the defence, through the very clipping, sum and
//! noise of a deployment ([`crate::Aggregator`]), and says which adversary sees what.
//!
//! Nothing here attacks anybody: the victims are made up, and only a simulation knows what went in.

mod convolution;
mod linear;
mod membership;
mod network;
mod picture;

pub use convolution::{ConvolutionAttack, ConvolutionFindings};
pub use linear::{LinearAttack, LinearError, LinearFindings, invert_dense};
pub use membership::{Leakage, MembershipAttack, MembershipError, MembershipFindings, Rates};
pub use picture::{Picture, cosine};

/// A picture, and what an attacker made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstruction {
    /// What the client trained on.
    pub original: Picture,
    /// What the attacker has without privacy.
    pub plain: Picture,
    /// What the attacker has under each defence, in the order of the findings.
    pub defended: Vec<Picture>,
}
