//! The collector of metrics, which the coordinator keeps client by client anyway.

use std::sync::Arc;

use protocol::{ClientId, Contribution, PayloadSpec, Rejection};

use super::{Aggregate, Close, Collector, Refused, Release, Verified, Verifier};

/// Metrics of the model, one set a client.
#[derive(Debug, Default)]
pub struct Measurements;

impl Collector for Measurements {
    fn expects(&self) -> PayloadSpec {
        PayloadSpec::none()
    }

    fn verifier(&self) -> Arc<dyn Verifier> {
        Arc::new(Self)
    }

    fn fold(&mut self, _: &ClientId, verified: Verified) -> Result<(), Refused> {
        verified.into_value::<()>()
    }

    fn close(self: Box<Self>, _: &mut dyn Release) -> Close {
        Close::Aggregate(Aggregate::Measured)
    }
}

impl Verifier for Measurements {
    fn verify(&self, contribution: Contribution) -> Result<Verified, Refused> {
        let Contribution { metrics, blocks, .. } = contribution;
        match (metrics, &blocks[..]) {
            (Some(_), []) => Ok(Verified::new((), metrics)),
            (None, []) => Err(Refused::new(Rejection::BadMetrics, "an evaluation came without metrics")),
            (_, _) => Err(Refused::new(Rejection::WrongKind, "values came where metrics alone are expected")),
        }
    }
}
