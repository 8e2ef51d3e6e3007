//! The model that a plan and a learner agree on, and what may come back of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use protocol::{External, Layout, Metrics, PARAMETERS_MAX, Spec};

use crate::error::ExternalError;
use crate::frames::{LearnerTensor, Outcome};

/// The model of a run, as plan and learner agree on it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) spec: Arc<Spec>,
    pub(crate) layout: Layout,
    /// Where in the full vector the tensors of a body are, in the learner's order.
    pub(crate) order: Vec<Range<usize>>,
    /// The same of those that stay at the site.
    pub(crate) personal: Vec<Range<usize>>,
    /// Whether the learner has said its tensors.
    pub(crate) is_agreed: bool,
}

impl Prepared {
    /// The plan's tensors alone, of a learner that has not said its own.
    pub(crate) fn of_plan(spec: &Arc<Spec>, external: External<'_>) -> Result<Self, ExternalError> {
        let tensors = external.tensors.iter().map(|tensor| LearnerTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            personal: false,
        });
        let tensors: Vec<LearnerTensor> = tensors.collect();
        Ok(Self { is_agreed: false, ..Self::of(spec, external, &tensors)? })
    }

    /// Compares the learner's tensors with the plan's, and lays them out: the plan's in the plan's order, then those that stay at the site.
    pub(crate) fn of(
        spec: &Arc<Spec>,
        external: External<'_>,
        found: &[LearnerTensor],
    ) -> Result<Self, ExternalError> {
        let wrong = |what: String| ExternalError::Model(what);
        let (mut names, mut values) = (BTreeMap::new(), 0u64);
        for tensor in found {
            let count = tensor.shape.iter().try_fold(1u64, |all, side| all.checked_mul(*side as u64));
            let sum = count.and_then(|count| values.checked_add(count));
            values = sum.filter(|sum| *sum <= PARAMETERS_MAX).ok_or_else(|| {
                let name = one_line(&tensor.name);
                wrong(format!(
                    "its tensors have more than {PARAMETERS_MAX} values, at `{name}` of shape {:?}",
                    tensor.shape
                ))
            })?;
            if names.insert(&*tensor.name, tensor).is_some() {
                return Err(wrong(format!("two tensors are named `{}`", tensor.name)));
            }
        }
        let shared = |name: &str| names.get(name).filter(|tensor| !tensor.personal);
        let agrees = external
            .tensors
            .iter()
            .all(|tensor| shared(&tensor.name).is_some_and(|found| found.shape == tensor.shape));
        let count = found.iter().filter(|tensor| !tensor.personal).count();
        if !agrees || count != external.tensors.len() {
            let ours = external.tensors.iter().map(|tensor| (&*tensor.name, &tensor.shape));
            let theirs =
                found.iter().filter(|tensor| !tensor.personal).map(|tensor| (&*tensor.name, &tensor.shape));
            return Err(wrong(format!("the plan has {}; the learner has {}", list(ours), list(theirs))));
        }
        let personal = found.iter().filter(|tensor| tensor.personal);
        let kept: Vec<String> = personal.clone().map(|tensor| tensor.name.clone()).collect();
        let tensors = external.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone()));
        let tensors = tensors.chain(personal.map(|tensor| (tensor.name.clone(), tensor.shape.clone())));
        let layout = Layout::new(tensors).map_err(|error| wrong(error.to_string()))?.with_kept(&kept);
        let places: BTreeMap<&str, Range<usize>> =
            layout.tensors().iter().map(|tensor| (&*tensor.name, tensor.range())).collect();
        let order = |is_wanted: fn(&LearnerTensor) -> bool| {
            let wanted = found.iter().filter(|tensor| is_wanted(tensor));
            wanted.filter_map(|tensor| places.get(&*tensor.name).cloned()).collect::<Vec<_>>()
        };
        let (order, personal) = (order(|_| true), order(|tensor| tensor.personal));
        Ok(Self { spec: Arc::clone(spec), layout, order, personal, is_agreed: true })
    }
}

/// A learner's words as part of a line of a log: without control characters, and not too many.
pub(crate) fn one_line(text: &str) -> String {
    const SHOWN: usize = 1000;
    let mut shown: String = text.escape_debug().take(SHOWN).collect();
    if text.chars().count() > SHOWN {
        shown.push_str("...");
    }
    shown
}

/// Tensors for a message: the first few, and how many more.
fn list<'a>(tensors: impl Iterator<Item = (&'a str, &'a Vec<usize>)>) -> String {
    const SHOWN: usize = 20;
    let all: Vec<String> = tensors.map(|(name, shape)| format!("{name} {shape:?}")).collect();
    match all.len() {
        0 => "no tensors".to_owned(),
        len if len > SHOWN => format!("{} and {} more", all[..SHOWN].join(", "), len - SHOWN),
        _ => all.join(", "),
    }
}

/// What a learner measured, where it can be.
pub(crate) fn measured(
    outcome: &Outcome,
    declared: &[String],
    seconds: f64,
    is_training: bool,
) -> Result<Metrics, ExternalError> {
    let wrong = |what: String| Err(ExternalError::Answer(what));
    if is_training && outcome.examples == 0 {
        return wrong("it trained on no examples".to_owned());
    }
    let known = |name: &str| name == "loss" || name == "accuracy" || declared.iter().any(|one| one == name);
    if let Some(name) = outcome.metrics.keys().find(|name| !known(name)) {
        let name = one_line(name);
        return wrong(format!("metric `{name}` is not among the plan's (`[learner] metrics`)"));
    }
    let Some(loss) = outcome.metrics.get("loss").copied().or_else(|| (outcome.examples == 0).then_some(0.0))
    else {
        return wrong("it has no `loss`".to_owned());
    };
    let accuracy = outcome.metrics.get("accuracy").copied();
    let metrics = Metrics { loss, accuracy, examples: outcome.examples, seconds };
    if metrics.is_sound() {
        return Ok(metrics);
    }
    let accuracy = accuracy.map(|accuracy| format!(", accuracy {accuracy}")).unwrap_or_default();
    wrong(format!(
        "loss {loss}{accuracy} and {} examples: a loss within 1e30, an accuracy from 0 to 1 and at most 2^53 examples can be",
        outcome.examples
    ))
}

/// Whether all values are finite.
pub(crate) fn check_finite(parameters: &[f32], layout: &Layout) -> Result<(), ExternalError> {
    let Some(at) = parameters.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&at));
    let (name, start, len) = tensor.map_or_else(
        || (String::new(), 0, parameters.len()),
        |tensor| (tensor.name.clone(), tensor.offset, tensor.len()),
    );
    Err(ExternalError::NotFinite { tensor: name, value: parameters[at], place: at - start, len })
}
