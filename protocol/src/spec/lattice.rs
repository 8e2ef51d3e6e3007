//! The lattice that follows from a plan: what both sides compute for themselves and never send.

use privacy::noise::{Sigma, SigmaError};
use privacy::{Lattice, LatticeError, NormBound};

use super::{Positive, Spec, SpecError, Weighting};

impl Spec {
    /// The lattice for updates of `dimension` coordinates that are clipped as a whole.
    ///
    /// # Errors
    /// [`SpecError`] at `update` when no lattice exists for the plan, and for a plan that clips tensor by tensor.
    pub fn lattice(&self, dimension: usize) -> Result<Lattice, SpecError> {
        if self.privacy.is_per_layer() {
            let message = "the lattice of a plan that clips tensor by tensor follows from the model's layout";
            return Err(SpecError::new("privacy.central.clipping", message));
        }
        self.lattice_within(self.update.norm_max, &[dimension])
    }

    /// The lattice for updates that consist of tensors with these numbers of values and whose norm is at most `norm_max`, as a
    /// task says where the norm changes from round to round. The tensors count each on their own only where the plan clips so.
    ///
    /// # Errors
    /// [`SpecError`] at `update` when no lattice exists for the plan.
    pub fn lattice_within(&self, norm_max: Positive, tensors: &[usize]) -> Result<Lattice, SpecError> {
        let bound = NormBound::new(norm_max.value())
            .map_err(|error| SpecError::new("update.norm_max", error.to_string()))?;
        let weight_max = match self.update.weights {
            Weighting::Examples => self.update.weight_max,
            Weighting::Uniform => 1,
        };
        let (cohort_max, dimension) = (self.cohort_max, tensors.iter().sum());
        let lattice = match &self.privacy.local {
            Some(local) => Lattice::plan_noised(bound, cohort_max, local.noise_multiplier.value(), dimension),
            None if self.privacy.is_per_layer() => Lattice::layered(bound, cohort_max, weight_max, tensors),
            None => Lattice::plan(bound, cohort_max, weight_max, dimension),
        };
        let lattice = lattice.map_err(|error| match error {
            LatticeError::WeightMax(_) => SpecError::new("update.weight_max", error.to_string()),
            _ => SpecError::new("update", error.to_string()),
        })?;
        self.check_noise_on(&lattice)?;
        Ok(lattice)
    }

    /// Whether the noise that is promised for sums, or for updates, on `lattice` can be made: neither so narrow that the
    /// lattice shows, nor beyond what a sum has room for. Else no round could be released, and nobody would learn it before.
    fn check_noise_on(&self, lattice: &Lattice) -> Result<(), SpecError> {
        let refuse = |key, error: SigmaError| SpecError::new(key, error.to_string());
        if let Some(local) = &self.privacy.local {
            let reach = u64::from(lattice.range().unsigned_abs());
            let sigma = Sigma::covering(local.noise_multiplier.value(), reach);
            sigma.map_err(|error| refuse("privacy.local.noise_multiplier", error))?;
        }
        if let Some(central) = &self.privacy.central {
            let sensitivity = lattice.sensitivity();
            let scale = central.noise_scale(lattice.dimension(), sensitivity)?;
            let sigma = Sigma::covering(central.noise_multiplier.value() * scale, sensitivity);
            sigma.map_err(|error| refuse("privacy.central.noise_multiplier", error))?;
        }
        Ok(())
    }
}
