//! What stays at one client from round to round: of every run it takes part in the personal tensors, and what a lossy codec has
//! left out of the last update.
//!
//! It never travels. A task that is asked twice (the server fell over and repeats its round) starts from where the first
//! time started, so that a repeated rehearsal gives the same bits.

use std::collections::BTreeMap;

use protocol::{Layout, Placement, Round, RunId};
use serde::{Deserialize, Serialize};

/// The personal tensors of one client, a vector a run, in layout order. Empty for models that are wholly shared.
///
/// A shell may write it to the site's own disk and bring it back; it describes the site's data as well as a model
/// does, so `Debug` shows no values.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Personal(BTreeMap<RunId, Kept>);

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    round: Round,
    before: Option<Vec<f32>>,
    after: Vec<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    residual: Option<Residual>,
}

/// What was left out of an update, in units of the parameters; `before` is what a repetition of the round begins with.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Residual {
    round: Round,
    before: Option<Vec<f32>>,
    after: Vec<f32>,
}

impl Personal {
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

    /// Where the training of `round` starts; `None` when the learner must initialise.
    pub(crate) fn start_of(&self, run: RunId, round: Round) -> Option<&[f32]> {
        let kept = self.0.get(&run)?;
        if kept.round == round { kept.before.as_deref() } else { Some(&kept.after) }
    }

    /// Keeps what the training of `round` made of the personal tensors.
    pub(crate) fn keep(&mut self, run: RunId, round: Round, after: Vec<f32>) {
        let before = self.start_of(run, round).map(<[f32]>::to_vec);
        let residual = self.0.remove(&run).and_then(|kept| kept.residual);
        self.0.insert(run, Kept { round, before, after, residual });
    }

    /// What is to be added to the delta of `round`: what the update of the round before left out. An older one is not: the model
    /// has moved on.
    pub(crate) fn residual(&self, run: RunId, round: Round) -> Option<&[f32]> {
        let residual = self.0.get(&run)?.residual.as_ref()?;
        if residual.round == round {
            residual.before.as_deref()
        } else {
            (residual.round.next() == round).then_some(residual.after.as_slice())
        }
    }

    /// Keeps what the update of `round` leaves out.
    pub(crate) fn keep_residual(&mut self, run: RunId, round: Round, after: Vec<f32>) {
        let before = self.residual(run, round).map(<[f32]>::to_vec);
        let kept = self.0.entry(run).or_insert_with(|| Kept {
            round,
            before: None,
            after: Vec::new(),
            residual: None,
        });
        kept.residual = Some(Residual { round, before, after });
    }
}

impl std::fmt::Debug for Personal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Personal({} runs)", self.0.len())
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

    #[test]
    fn a_repeated_round_starts_where_it_started_the_first_time() {
        let (run, mut personal) = (RunId(1), Personal::default());
        assert_eq!(personal.start_of(run, Round(1)), None);
        personal.keep(run, Round(1), vec![1.0]);
        assert_eq!(personal.start_of(run, Round(1)), None);
        assert_eq!(personal.start_of(run, Round(2)), Some(&[1.0][..]));
        personal.keep(run, Round(2), vec![2.0]);
        personal.keep(run, Round(2), vec![3.0]);
        assert_eq!(personal.start_of(run, Round(2)), Some(&[1.0][..]));
        assert_eq!(personal.values(run), Some(&[3.0][..]));
        personal.forget(run);
        assert!(personal.is_empty());
    }

    #[test]
    fn what_was_left_out_is_added_in_the_next_round_alone_and_again_when_that_is_repeated() {
        let (run, mut personal) = (RunId(1), Personal::default());
        personal.keep_residual(run, Round(4), vec![1.0]);
        assert_eq!(personal.residual(run, Round(4)), None);
        assert_eq!(personal.residual(run, Round(5)), Some(&[1.0][..]));
        assert_eq!(personal.residual(run, Round(6)), None);
        personal.keep_residual(run, Round(5), vec![2.0]);
        assert_eq!(personal.residual(run, Round(5)), Some(&[1.0][..]));
        let text = serde_json::to_string(&personal).unwrap();
        let mut restored: Personal = serde_json::from_str(&text).unwrap();
        assert_eq!(restored.residual(run, Round(6)), Some(&[2.0][..]));
        restored.keep(run, Round(6), vec![3.0]);
        assert_eq!(restored.residual(run, Round(6)), Some(&[2.0][..]), "personal tensors are another matter");
    }

    #[test]
    fn runs_are_kept_apart_and_values_are_not_printed() {
        let mut personal = Personal::default();
        personal.keep(RunId(1), Round(1), vec![12345.0]);
        assert_eq!(personal.values(RunId(2)), None);
        assert_eq!(personal.runs().collect::<Vec<_>>(), [RunId(1)]);
        assert_eq!(format!("{personal:?}"), "Personal(1 runs)");
    }
}
