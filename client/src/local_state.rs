//! What stays at one client from round to round: of every run it takes part in the personal tensors, and what a lossy codec has
//! left out of the last update.
//!
//! It never travels, and serves no other run: what was made without noise may follow from every record, and a run whose noise hides them
//! would begin with it. A server chooses a run's number, so that the number alone names none ([`Origin`]).
//!
//! A task that is asked twice (the server fell over and repeats its round) starts from where the first
//! time started, so that a repeated seeded run gives the same bits.

use std::collections::BTreeMap;

use privacy::chain::Digest;
use protocol::{Layout, Name, Placement, PrivacySpec, Round, RunId, StepId};
use serde::{Deserialize, Serialize};

use crate::methods::MethodState;

/// The personal tensors of one client, a vector a run, in layout order. Empty for models that are wholly shared.
///
/// A shell may write it to the site's own disk and bring it back; it describes the site's data as well as a model
/// does, so `Debug` shows no values.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalState(BTreeMap<RunId, Kept>);

/// Where something that is kept comes from: it is used for nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The fingerprint of the authority whose server ran it; zeros at a client without books.
    pub(crate) federation: Digest,
    pub(crate) run: RunId,
    /// What the run's plan promises.
    #[serde(default, skip_serializing_if = "PrivacySpec::is_none")]
    pub(crate) promise: PrivacySpec,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// `None` in a file of a release that did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    round: Round,
    before: Option<Vec<f32>>,
    after: Vec<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    residual: Option<Residual>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    methods: BTreeMap<Name, KeptState>,
}

/// What a method kept, and what a repetition of the same task begins with.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct KeptState {
    round: Round,
    step: u16,
    before: Option<MethodState>,
    after: Option<MethodState>,
}

/// What was left out of an update, in units of the parameters; `before` is what a repetition of the round begins with.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Residual {
    round: Round,
    before: Option<Vec<f32>>,
    after: Vec<f32>,
}

impl LocalState {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The personal tensors of a run as the last training left them, one after another in layout order.
    pub fn values(&self, run: RunId) -> Option<&[f32]> {
        self.0.get(&run).map(|kept| kept.after.as_slice())
    }

    /// The runs of which something is kept.
    pub fn runs(&self) -> impl Iterator<Item = RunId> {
        self.0.keys().copied()
    }

    /// Drops what is kept of a run that is over.
    pub fn forget(&mut self, run: RunId) {
        self.0.remove(&run);
    }

    /// Writes down where that comes from of which a file of a release before does not say it, as `origin_of` knows; the runs that are
    /// dropped, since it does not.
    pub(crate) fn settle(&mut self, origin_of: impl Fn(RunId) -> Option<Origin>) -> Vec<RunId> {
        let mut dropped = Vec::new();
        self.0.retain(|run, kept| {
            if kept.origin.is_none() {
                kept.origin = origin_of(*run);
            }
            if kept.origin.is_none() {
                dropped.push(*run);
            }
            kept.origin.is_some()
        });
        dropped
    }

    /// Whether something is kept under the number of this run that comes from elsewhere.
    pub(crate) fn is_of_another(&self, origin: &Origin) -> bool {
        self.0.get(&origin.run).is_some_and(|kept| kept.origin.as_ref() != Some(origin))
    }

    fn of(&self, origin: &Origin) -> Option<&Kept> {
        self.0.get(&origin.run).filter(|kept| kept.origin.as_ref() == Some(origin))
    }

    /// What the last training left, for an evaluation.
    pub(crate) fn latest(&self, origin: &Origin) -> Option<&[f32]> {
        self.of(origin).map(|kept| kept.after.as_slice())
    }

    /// Where the training of `round` starts; `None` when the learner must initialise.
    pub(crate) fn start_of(&self, origin: &Origin, round: Round) -> Option<&[f32]> {
        let kept = self.of(origin)?;
        if kept.round == round { kept.before.as_deref() } else { Some(&kept.after) }
    }

    /// Keeps what the training of `round` made of the personal tensors, in the place of what comes from elsewhere.
    pub(crate) fn keep(&mut self, origin: &Origin, round: Round, after: Vec<f32>) {
        let before = self.start_of(origin, round).map(<[f32]>::to_vec);
        let kept = self.begun(origin, round);
        (kept.round, kept.before, kept.after) = (round, before, after);
    }

    /// What is to be added to the delta of `round`: what the update of the round before left out. An older one is not: the model
    /// has moved on.
    pub(crate) fn residual(&self, origin: &Origin, round: Round) -> Option<&[f32]> {
        let residual = self.of(origin)?.residual.as_ref()?;
        if residual.round == round {
            residual.before.as_deref()
        } else {
            (residual.round.next() == round).then_some(residual.after.as_slice())
        }
    }

    /// Keeps what the update of `round` leaves out, in the place of what comes from elsewhere.
    pub(crate) fn keep_residual(&mut self, origin: &Origin, round: Round, after: Vec<f32>) {
        let before = self.residual(origin, round).map(<[f32]>::to_vec);
        let kept = self.begun(origin, round);
        kept.residual = Some(Residual { round, before, after });
    }
}

/// What methods keep.
impl LocalState {
    /// What the method begins the task of this round and step with.
    pub(crate) fn method_state(
        &self,
        origin: &Origin,
        method: &Name,
        (round, step): (Round, StepId),
    ) -> Option<&MethodState> {
        let kept = self.of(origin)?.methods.get(method)?;
        if (kept.round, kept.step) == (round, step.number()) {
            kept.before.as_ref()
        } else {
            kept.after.as_ref()
        }
    }

    /// Keeps what the task of this round and step left of the method's state, in the place of what comes from elsewhere.
    pub(crate) fn keep_method_state(
        &mut self,
        origin: &Origin,
        method: &Name,
        (round, step): (Round, StepId),
        after: Option<MethodState>,
    ) {
        let before = self.method_state(origin, method, (round, step)).cloned();
        if before.is_none() && after.is_none() {
            return;
        }
        let kept = self.begun(origin, round);
        kept.methods.insert(method.clone(), KeptState { round, step: step.number(), before, after });
    }

    /// What is kept of this run, in the place of what comes from elsewhere.
    fn begun(&mut self, origin: &Origin, round: Round) -> &mut Kept {
        if self.is_of_another(origin) {
            self.forget(origin.run);
        }
        self.0.entry(origin.run).or_insert_with(|| Kept {
            origin: Some(origin.clone()),
            round,
            before: None,
            after: Vec::new(),
            residual: None,
            methods: BTreeMap::new(),
        })
    }
}

impl std::fmt::Debug for LocalState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalState({} runs)", self.0.len())
    }
}

/// The personal part of a full vector.
pub(crate) fn gather_personal(layout: &Layout, full: &[f32]) -> Vec<f32> {
    let site = layout.tensors().iter().filter(|tensor| tensor.placement == Placement::Site);
    site.flat_map(|tensor| &full[tensor.range()]).copied().collect()
}

/// Writes a personal part into a full vector. `false`, and nothing written, when their lengths do not fit.
pub(crate) fn scatter_personal(layout: &Layout, personal: &[f32], full: &mut [f32]) -> bool {
    if personal.len() != layout.len() - layout.shared_len() || full.len() != layout.len() {
        return false;
    }
    let mut rest = personal;
    for tensor in layout.tensors().iter().filter(|tensor| tensor.placement == Placement::Site) {
        let (values, after) = rest.split_at(tensor.len());
        full[tensor.range()].copy_from_slice(values);
        rest = after;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(run: u64) -> Origin {
        Origin { federation: Digest::of(b"federation"), run: RunId(run), promise: PrivacySpec::default() }
    }

    #[test]
    fn a_repeated_round_starts_where_it_started_the_first_time() {
        let (run, mut personal) = (&origin(1), LocalState::default());
        assert_eq!(personal.start_of(run, Round(1)), None);
        personal.keep(run, Round(1), vec![1.0]);
        assert_eq!(personal.start_of(run, Round(1)), None);
        assert_eq!(personal.start_of(run, Round(2)), Some(&[1.0][..]));
        personal.keep(run, Round(2), vec![2.0]);
        personal.keep(run, Round(2), vec![3.0]);
        assert_eq!(personal.start_of(run, Round(2)), Some(&[1.0][..]));
        assert_eq!(personal.latest(run), Some(&[3.0][..]));
        personal.forget(run.run);
        assert!(personal.is_empty());
    }

    #[test]
    fn what_was_left_out_is_added_in_the_next_round_alone_and_again_when_that_is_repeated() {
        let (run, mut personal) = (&origin(1), LocalState::default());
        personal.keep_residual(run, Round(4), vec![1.0]);
        assert_eq!(personal.residual(run, Round(4)), None);
        assert_eq!(personal.residual(run, Round(5)), Some(&[1.0][..]));
        assert_eq!(personal.residual(run, Round(6)), None);
        personal.keep_residual(run, Round(5), vec![2.0]);
        assert_eq!(personal.residual(run, Round(5)), Some(&[1.0][..]));
        let text = serde_json::to_string(&personal).unwrap();
        let mut restored: LocalState = serde_json::from_str(&text).unwrap();
        assert_eq!(restored.residual(run, Round(6)), Some(&[2.0][..]));
        restored.keep(run, Round(6), vec![3.0]);
        assert_eq!(restored.residual(run, Round(6)), Some(&[2.0][..]), "personal tensors are another matter");
    }

    #[test]
    fn runs_are_kept_apart_and_values_are_not_printed() {
        let mut personal = LocalState::default();
        personal.keep(&origin(1), Round(1), vec![12345.0]);
        assert_eq!(personal.values(RunId(2)), None);
        assert_eq!(personal.runs().collect::<Vec<_>>(), [RunId(1)]);
        assert_eq!(format!("{personal:?}"), "LocalState(1 runs)");
    }

    #[test]
    fn what_comes_from_elsewhere_is_used_for_nothing_and_gives_way() {
        let here = origin(1);
        let local = PrivacySpec {
            local: Some(protocol::LocalPrivacy {
                noise_multiplier: protocol::Positive::new(1.0).unwrap(),
                delta: 1e-5,
                epsilon_max: protocol::Positive::new(1.0).unwrap(),
                metrics: Default::default(),
            }),
            ..PrivacySpec::default()
        };
        let others = [
            Origin { federation: Digest::of(b"another"), ..here.clone() },
            Origin { promise: local, ..here },
        ];
        for other in &others {
            let mut personal = LocalState::default();
            personal.keep(&here, Round(3), vec![1.0]);
            personal.keep_residual(&here, Round(3), vec![2.0]);
            assert!(personal.is_of_another(other) && !personal.is_of_another(&here));
            assert_eq!((personal.latest(other), personal.start_of(other, Round(4))), (None, None));
            assert_eq!(personal.residual(other, Round(4)), None);
            let mut left_out = personal.clone();
            left_out.keep_residual(other, Round(4), vec![4.0]);
            assert_eq!((left_out.latest(&here), left_out.residual(&here, Round(4))), (None, None));
            personal.keep(other, Round(4), vec![3.0]);
            assert_eq!(
                (personal.start_of(other, Round(5)), personal.residual(other, Round(5))),
                (Some(&[3.0][..]), None)
            );
            assert_eq!(
                personal.start_of(other, Round(4)),
                None,
                "a repetition begins where the first time began"
            );
            assert_eq!(personal.latest(&here), None);
        }
    }

    #[test]
    fn a_file_of_a_release_before_is_used_where_its_origin_can_be_shown() {
        let kept = r#"{"round":2,"before":null,"after":[5.0]}"#;
        let mut personal: LocalState =
            serde_json::from_str(&format!("{{\"1\":{kept},\"2\":{kept}}}")).unwrap();
        assert_eq!(personal.latest(&origin(1)), None);
        let dropped = personal.settle(|run| (run == RunId(1)).then(|| origin(1)));
        assert_eq!((dropped, personal.latest(&origin(1))), (vec![RunId(2)], Some(&[5.0][..])));
        let text = serde_json::to_string(&personal).unwrap();
        let mut again: LocalState = serde_json::from_str(&text).unwrap();
        assert!(again.settle(|_| None).is_empty() && again == personal);
    }
}
