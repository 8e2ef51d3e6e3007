//! A method of two exchanges: every site commits to a secret number, then all reveal theirs, and the sum is one that no single site could
//! have chosen (Blum 1981). A number that does not fit its commitment is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{MethodSite, MethodState, SiteMethod};
use privacy::chain::Digest;
use protocol::{
    Block, ClientId, Contribution, DType, DataSpec, Decline, LearnError, MethodWork, Name, Parameters,
    PayloadSpec, Rejection, Round, SpecError, StepId, Values, Work,
};
use rand::RngCore;
use server::workflow::{
    Aggregate, Close, ClosePolicy, CohortRule, Collector, Conclusion, Effect, Refused, Release, RunState,
    StepPlan, Verified, Verifier, Workflow,
};
use server::{Method, MethodStep, Plan, PlannedMethod};
use tokio::sync::mpsc;

const NAME: Name = Name::literal("toss");
const COMMITMENT: Name = Name::literal("commitment");
const SECRET: Name = Name::literal("secret");
pub(crate) const COMMIT: StepId = StepId::method(0);
pub(crate) const REVEAL: StepId = StepId::method(1);

/// What a site does when it is asked to reveal.
#[derive(Clone, Debug, Default)]
pub(crate) enum Conduct {
    /// Reveals what it has committed to.
    #[default]
    Honest,
    /// Reveals something else.
    Cheats,
    /// Says that it was asked, and never answers.
    Hangs(mpsc::UnboundedSender<ClientId>),
}

/// See the module. Both halves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Toss(pub(crate) Conduct);

impl Method for Toss {
    fn name(&self) -> Name {
        NAME
    }

    fn version(&self) -> u16 {
        3
    }

    fn plan(&self, settings: toml::Table, _: &DataSpec) -> Result<Arc<dyn PlannedMethod>, SpecError> {
        match settings.keys().next() {
            Some(key) => Err(SpecError::new(key, "a toss has no settings")),
            None => Ok(Arc::new(self.clone())),
        }
    }
}

impl PlannedMethod for Toss {
    /// The sum modulo 2^24, which an f32 holds, and how many revealed.
    fn shape(&self) -> Vec<usize> {
        vec![2]
    }

    fn steps(&self) -> Vec<MethodStep> {
        let step = |step, name, answer| MethodStep { step, name: Name::literal(name), answer };
        vec![
            step(COMMIT, "commit", PayloadSpec::one(COMMITMENT, DType::U8, 64)),
            step(REVEAL, "reveal", PayloadSpec::one(SECRET, DType::U64, 1)),
        ]
    }

    fn workflow(&self, plan: &Arc<Plan>) -> Result<Box<dyn Workflow>, SpecError> {
        Ok(Box::new(Tosses(Arc::clone(plan))))
    }
}

struct Tosses(Arc<Plan>);

impl Workflow for Tosses {
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan> {
        let round = state.checkpoint.round.next();
        let collector = Commitments { quorum: self.0.cohort.quorum, round, of: BTreeMap::new() };
        (!self.is_finished(state)).then(|| StepPlan {
            step: COMMIT,
            round,
            cohort: CohortRule::Drawn,
            work: asked(),
            collector: Box::new(collector),
            quorum: self.0.cohort.quorum,
            close: ClosePolicy::All,
            central: false,
            is_round: true,
        })
    }

    fn concluded(&mut self, step: StepId, aggregate: Aggregate, _: &RunState<'_>) -> Conclusion {
        assert_eq!(step, REVEAL, "the first exchange gives nothing by itself");
        let effect = match aggregate {
            Aggregate::Blocks(blocks) => match &blocks[0].values {
                Values::F32(values) => Effect::SetModel(Parameters::new(values.clone())),
                other => panic!("{:?}", other.dtype()),
            },
            other => panic!("{other:?}"),
        };
        Conclusion { effect, is_round_over: true }
    }

    fn is_finished(&self, state: &RunState<'_>) -> bool {
        state.checkpoint.round.0 >= self.0.rounds
    }
}

fn asked() -> Work {
    Work::Method(Arc::new(MethodWork { method: NAME, version: 3, numbers: Vec::new(), blocks: Vec::new() }))
}

/// Takes any values of the expected length.
struct Values1;

impl Verifier for Values1 {
    fn verify(&self, contribution: Contribution) -> Result<Verified, Refused> {
        let [block] = <[Block; 1]>::try_from(contribution.blocks)
            .map_err(|_| Refused::new(Rejection::WrongKind, "one block is expected"))?;
        Ok(Verified::new(block.values, None))
    }
}

struct Commitments {
    quorum: usize,
    round: Round,
    of: BTreeMap<ClientId, Vec<u8>>,
}

impl Collector for Commitments {
    fn expects(&self) -> PayloadSpec {
        PayloadSpec::one(COMMITMENT, DType::U8, 64)
    }

    fn verifier(&self) -> Arc<dyn Verifier> {
        Arc::new(Values1)
    }

    fn fold(&mut self, from: &ClientId, verified: Verified) -> Result<(), Refused> {
        match verified.into_value::<Values>()? {
            Values::U8(commitment) => self.of.insert(from.clone(), commitment),
            other => return Err(Refused::new(Rejection::WrongKind, format!("{:?}", other.dtype()))),
        };
        Ok(())
    }

    fn close(self: Box<Self>, _: &mut dyn Release) -> Close {
        let Self { quorum, round, of } = *self;
        Close::FurtherExchange(Box::new(StepPlan {
            step: REVEAL,
            round,
            cohort: CohortRule::These(of.keys().cloned().collect()),
            work: asked(),
            collector: Box::new(Secrets { committed: of, sum: 0, revealed: 0 }),
            quorum,
            close: ClosePolicy::All,
            central: false,
            is_round: true,
        }))
    }
}

struct Secrets {
    committed: BTreeMap<ClientId, Vec<u8>>,
    sum: u64,
    revealed: u16,
}

impl Collector for Secrets {
    fn expects(&self) -> PayloadSpec {
        PayloadSpec::one(SECRET, DType::U64, 1)
    }

    fn verifier(&self) -> Arc<dyn Verifier> {
        Arc::new(Values1)
    }

    fn fold(&mut self, from: &ClientId, verified: Verified) -> Result<(), Refused> {
        let Values::U64(secret) = verified.into_value::<Values>()? else { panic!("the length was checked") };
        if self.committed.get(from) != Some(&commitment(secret[0])) {
            return Err(Refused::new(Rejection::OutOfRange, "the secret does not fit its commitment"));
        }
        (self.sum, self.revealed) = (self.sum.wrapping_add(secret[0]), self.revealed + 1);
        Ok(())
    }

    fn close(self: Box<Self>, _: &mut dyn Release) -> Close {
        let sum = (self.sum & 0xff_ffff) as f32;
        let values = Values::F32(vec![sum, f32::from(self.revealed)]);
        Close::Aggregate(Aggregate::Blocks(vec![Block::new(Name::literal("toss"), values)]))
    }
}

fn commitment(secret: u64) -> Vec<u8> {
    Digest::of(&secret.to_le_bytes()).to_string().into_bytes()
}

impl SiteMethod for Toss {
    fn name(&self) -> Name {
        NAME
    }

    fn version(&self) -> u16 {
        3
    }

    fn perform(&self, _: &MethodWork, site: &mut MethodSite<'_>) -> Result<Contribution, LearnError> {
        if site.step == COMMIT {
            let secret = site.seed.generator().next_u64();
            *site.state = Some(MethodState { version: 1, bytes: secret.to_le_bytes().to_vec() });
            let block = Block::new(COMMITMENT, Values::U8(commitment(secret)));
            return Ok(Contribution::of(vec![block]));
        }
        let kept = site.state.take().and_then(|state| state.bytes.try_into().ok()).map(u64::from_le_bytes);
        let kept = kept.ok_or_else(|| LearnError::new(Decline::Failed, "it has committed to nothing"))?;
        let secret = match &self.0 {
            Conduct::Honest => kept,
            Conduct::Cheats => kept.wrapping_add(1),
            Conduct::Hangs(told) => {
                told.send(site.id.clone()).unwrap();
                while !site.stop.is_stopped() {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                kept
            }
        };
        Ok(Contribution::of(vec![Block::new(SECRET, Values::U64(vec![secret]))]))
    }
}
