//! Plans: every combination of the options that change what is released or reserved.

/// Whether the large grid is asked for.
pub(crate) fn is_thorough() -> bool {
    std::env::var_os("CONSORTIA_THOROUGH").is_some()
}

/// One combination.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) sampling: String,
    pub(crate) relation: &'static str,
    pub(crate) noise: &'static str,
    pub(crate) clipping: &'static str,
    pub(crate) weights: &'static str,
    pub(crate) count: Option<usize>,
    pub(crate) quorum: Option<u32>,
    pub(crate) noise_multiplier: f64,
    pub(crate) denominator: f64,
    pub(crate) delta: f64,
    pub(crate) rounds: u32,
}

impl Options {
    /// As little as a plan needs.
    pub(crate) fn plain(sampling: &str) -> Self {
        Self {
            sampling: sampling.to_owned(),
            relation: "zero_out",
            noise: "\"independent\"",
            clipping: "\"fixed\"",
            weights: "weights = \"uniform\"",
            count: None,
            quorum: None,
            noise_multiplier: 0.8,
            denominator: 2.0,
            delta: 1e-5,
            rounds: 2,
        }
    }

    /// The plan.
    pub(crate) fn text(&self) -> String {
        let Self { sampling, relation, noise, clipping, weights, .. } = self;
        let Self { count, quorum, noise_multiplier, denominator, delta, rounds, .. } = self;
        let count = count.map_or_else(String::new, |count| format!("count = {count}\n"));
        let quorum = quorum.map_or_else(String::new, |least| format!("clients_min = {least}\n"));
        format!(
            "name = \"e\"\nrounds = {rounds}\nmodel = \"linear\"\n\
             [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
             [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.1 }} }}\n\
             [update]\nnorm_max = 1.0\n{weights}\n\
             [cohort]\nclients_min = 1\n{count}\n\
             [privacy.central]\nrelation = \"{relation}\"\ndelta = {delta}\nepsilon_max = 1e6\n\
             noise_multiplier = {noise_multiplier}\ndenominator = {denominator}\nsampling = {sampling}\n\
             noise = {noise}\nclipping = {clipping}\n{quorum}"
        )
    }
}

/// Every combination, also of what does not go together: the plan's check refuses that.
pub(crate) fn every_combination() -> impl Iterator<Item = Options> {
    let thorough = is_thorough();
    let pick = |usual, all| pick(thorough, usual, all);
    let samplings = samplings(thorough);
    let noises = pick(
        &["\"independent\"", "\"tree\"", "{ banded = { weights = [524288] } }"],
        &[
            "\"independent\"",
            "\"tree\"",
            "{ banded = { weights = [524288] } }",
            "{ banded = { weights = [1048576] } }",
            "{ square_root = { bands = 2 } }",
            "{ buffered = { buffers = [[0.5, 0.4]], bands = 2 } }",
        ],
    );
    let clippings = pick(
        &["\"fixed\"", "\"per_layer\"", "{ adaptive = { count_noise = 0.55 } }"],
        &[
            "\"fixed\"",
            "\"per_layer\"",
            "{ adaptive = { count_noise = 0.55 } }",
            "{ adaptive = { } }",
            "{ adaptive = { count_noise = 5.0 } }",
        ],
    );
    let multipliers = if thorough { vec![0.8, 1.0, 2.5] } else { vec![0.8] };
    let deltas = if thorough { vec![1e-5, 1e-3, 0.01] } else { vec![1e-5] };
    let mut all = Vec::new();
    for sampling in samplings {
        for relation in ["add_or_remove_one", "zero_out", "replace_one"] {
            for noise in &noises {
                for clipping in &clippings {
                    for noise_multiplier in &multipliers {
                        let options = Options {
                            relation,
                            noise,
                            clipping,
                            noise_multiplier: *noise_multiplier,
                            rounds: if *noise == "\"independent\"" { 2 } else { 3 },
                            ..Options::plain(sampling)
                        };
                        // One after the other, so that what is released needs to be found once.
                        for variant in variants(&options) {
                            all.extend(
                                deltas.iter().map(|delta| Options { delta: *delta, ..variant.clone() }),
                            );
                        }
                    }
                }
            }
        }
    }
    all.into_iter()
}

/// The ways in which cohorts come about.
fn samplings(thorough: bool) -> Vec<&'static str> {
    pick(
        thorough,
        &[
            "{ poisson = { rate = 0.1 } }",
            "{ fixed = { population = 3, sample = 2 } }",
            "{ availability = { participations_max = 2, separation_min = 2 } }",
        ],
        &[
            "{ poisson = { rate = 0.02 } }",
            "{ poisson = { rate = 0.1 } }",
            "{ poisson = { rate = 0.5 } }",
            "{ poisson = { rate = 1.0 } }",
            "{ fixed = { population = 3, sample = 1 } }",
            "{ fixed = { population = 3, sample = 2 } }",
            "{ fixed = { population = 3, sample = 3 } }",
            "{ availability = { participations_max = 1 } }",
            "{ availability = { participations_max = 2, separation_min = 2 } }",
            "{ availability = { participations_max = 3 } }",
        ],
    )
}

fn pick(thorough: bool, usual: &[&'static str], all: &[&'static str]) -> Vec<&'static str> {
    if thorough { all.to_vec() } else { usual.to_vec() }
}

/// The same with weights, caps and quorums.
fn variants(options: &Options) -> Vec<Options> {
    let weights = ["weights = \"uniform\"", "weights = \"examples\"\nweight_max = 3"];
    let cohorts = [(None, None), (Some(1), None), (None, Some(2))];
    let mut all = Vec::new();
    for (place, weights) in weights.into_iter().enumerate() {
        for (count, quorum) in cohorts {
            // How updates are weighted and who is kept out are told apart by the large grid alone.
            if is_thorough() || place == 0 || (count, quorum) == (None, None) {
                all.push(Options { weights, count, quorum, ..options.clone() });
            }
        }
    }
    all
}
