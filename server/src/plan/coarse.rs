//! Whether the lattice of a plan is so coarse that what sites train is rounded away: the norm bound fixes its step, and a bound far above
//! every norm leaves none of the values that training moves.

use privacy::accounting::Figure;
use protocol::COHORT_MAX;

use super::{CohortSize, Plan};

/// The largest step that is no cause for a warning, however large the learning rate: weights begin at about a tenth.
const STEP_MAX: f64 = 0.01;

/// A step that is too coarse.
struct Coarse {
    step: f64,
    range: i32,
    /// The norm bound to set instead: a power of ten, which is easier to type.
    norm_max: f64,
}

impl Plan {
    /// Whether the lattice is too coarse: its step is above [`STEP_MAX`], or above the learning rate, by about which a local step moves a
    /// value. A method sends no update.
    fn coarse(&self, tensors: &[usize]) -> Option<Coarse> {
        if self.method.is_some() {
            return None;
        }
        let lattice = self.spec.lattice_within(self.spec.update.norm_max, tensors).ok()?;
        let step_max = self.spec.training.optimizer.learning_rate().min(STEP_MAX);
        let (step, range) = (lattice.step(), lattice.range());
        let norm_max = 10f64.powf((step_max * f64::from(range)).log10().floor());
        (step > step_max).then_some(Coarse { step, range, norm_max })
    }

    /// A warning where plausible updates of a model, whose `tensors` have so many values each, would be rounded to zero; it names the
    /// settings that fix the step and what to set. `None` where the step is fine enough, and for a method.
    pub fn coarse_step(&self, tensors: &[usize]) -> Option<String> {
        let Coarse { step, range, norm_max } = self.coarse(tensors)?;
        let update = &self.spec.update;
        let cohort = match self.cohort.size {
            CohortSize::Count(count) => format!("cohort.count = {count}"),
            CohortSize::Fraction(_) => format!("as many as {COHORT_MAX} clients a round (no cohort.count)"),
        };
        // How far the program of an external model moves a value, only its people know.
        let local = match self.spec.external() {
            Some(_) => String::new(),
            None => {
                let rate = Figure(self.spec.training.optimizer.learning_rate());
                format!(", and a local step moves a value by about the learning rate, {rate}")
            }
        };
        Some(format!(
            "update.norm_max = {} makes the lattice on which updates are rounded too coarse. Its step is {} (norm_max / {range}, which follows from \
             {cohort} and update.weight_max = {}), so a value that training moves by less than half of that does not change{local}. Set \
             update.norm_max to at most {}",
            Figure(update.norm_max.value()),
            short(step),
            update.weight_max,
            Figure(norm_max),
        ))
    }

    /// Why a round's update was zero in every value, and what to set.
    pub(crate) fn unmoved(&self, tensors: &[usize]) -> String {
        let norm_max = Figure(self.spec.update.norm_max.value());
        let why = match self.coarse(tensors) {
            Some(Coarse { step, norm_max: advised, .. }) => format!(
                "it was rounded to a lattice of step {}, which update.norm_max = {norm_max} makes too coarse; set update.norm_max to at most {}",
                short(step),
                Figure(advised)
            ),
            None => format!(
                "training moves no value by half a step of the lattice, to which it is rounded; raise {} or training.epochs, or lower update.norm_max = {norm_max}, to which that step is proportional",
                match self.spec.external() {
                    Some(_) => "the script's learning rate",
                    None => "training.optimizer's learning_rate",
                }
            ),
        };
        format!("the update is zero in every value, so the round learned nothing: {why}")
    }
}

/// Three digits.
fn short(value: f64) -> String {
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    match (1e-4..1e6).contains(&value.abs()) {
        true => format!("{value:.digits$}"),
        false => format!("{value:.2e}"),
    }
}
