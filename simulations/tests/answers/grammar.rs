//! Hostile tasks, made as text and numbers of the wire: every field takes values that nobody sensible would send.

use protocol::wire::{TaskHeader, WorkHeader};
use protocol::{Positive, Round, RunId, Seed, Standardiser, StepId, Task, TaskId};

/// Repeatable chance (SplitMix64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// The usual value, or once in `times` one of the others.
    fn mostly(&mut self, usual: &str, others: &[&str], times: usize) -> String {
        if self.once_in(times) { (*self.pick(others)).to_owned() } else { usual.to_owned() }
    }

    fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Numbers as they may stand in JSON.
const NUMBERS: [&str; 16] = [
    "0", "-1", "1e-308", "5e-324", "1e-40", "1e-30", "1e-13", "1e-12", "0.5", "999999", "1e6", "1.0001e6",
    "1e12", "1e30", "3.4e38", "1.7e308",
];
/// Parameters as they may follow a header.
const PARAMETERS: [f32; 14] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    -1e30,
    1e20,
    1.000_1e9,
    1e9,
    -1e9,
    1e5,
    f32::MIN_POSITIVE,
    1e-40,
    -0.0,
    88.0,
];

/// A task as it arrives.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) header: TaskHeader,
    pub(crate) words: Vec<f32>,
    /// Whether the server gives the task up at once.
    pub(crate) given_up: bool,
    /// Seconds since the task before.
    pub(crate) later: u64,
}

impl Question {
    pub(crate) fn draw(dice: &mut Dice, number: u32) -> Self {
        let (spec_json, width) = spec(dice);
        let run = RunId(dice.below(3) as u64);
        let (kind, work) = work(dice);
        let round = Round(if dice.once_in(8) { dice.below(4) as u32 } else { number + 1 });
        let seed = dice.once_in(12).then(|| Seed::from_number(3));
        let standardiser = dice.once_in(10).then(|| {
            let mut some =
                || if dice.once_in(2) { 1.0 } else { dice.pick(&NUMBERS).parse().unwrap_or(f64::NAN) };
            Standardiser { mean: vec![some(), some()], std: vec![some(), some()] }
        });
        let mut words: Vec<f32> = (0..width).map(|place| place as f32 * 0.1 - 0.2).collect();
        if kind == StepId::STATISTICS {
            words.clear();
        } else if dice.once_in(8) {
            let place = dice.below(width);
            words[place] = *dice.pick(&PARAMETERS);
        }
        if dice.once_in(40) {
            words.push(0.0);
        }
        let id = TaskId::new(run, round, if dice.once_in(40) { StepId::TRAIN } else { kind });
        let model_len = words.len() as u64;
        let header = TaskHeader { id, spec_json, seed, standardiser, work, model_len };
        Self { header, words, given_up: dice.once_in(60), later: dice.below(20_000) as u64 }
    }

    /// The task, where the wire takes it.
    pub(crate) fn task(&self) -> Result<Task, String> {
        self.header.clone().into_task(self.words.clone(), Vec::new()).map_err(|error| error.to_string())
    }
}

fn work(dice: &mut Dice) -> (StepId, WorkHeader) {
    match dice.below(20) {
        0 => (StepId::STATISTICS, WorkHeader::Statistics),
        1..=3 => (StepId::EVALUATE, WorkHeader::Evaluate),
        _ => {
            let scale = dice.mostly("1", &NUMBERS, 20).parse().unwrap_or(1.0);
            let norm = dice.once_in(20).then(|| dice.pick(&NUMBERS).parse().unwrap_or(1.0));
            let norm_max = norm.and_then(|norm| Positive::new(norm).ok());
            (StepId::TRAIN, WorkHeader::Train { learning_rate_scale: scale, norm_max })
        }
    }
}

/// A spec as JSON, and how many parameters its model shares when everything is in order.
fn spec(dice: &mut Dice) -> (String, usize) {
    let real = dice.once_in(4);
    let hidden = dice.once_in(5);
    let (model, target, mut width) = match (hidden, real) {
        (false, false) => ("\"logistic\"", "{\"classes\": 2}", 6),
        (false, true) => ("\"linear\"", "\"real\"", 3),
        (true, false) => ("{\"mlp\": {\"hidden\": [2]}}", "{\"classes\": 2}", 12),
        (true, true) => ("{\"mlp\": {\"hidden\": [2]}}", "\"real\"", 9),
    };
    let personal = hidden && dice.once_in(3);
    if personal {
        // The last layer stays at the site.
        width = 6;
    }
    let personal = if personal { "[\"dense2\"]" } else { "[]" };
    let number = |dice: &mut Dice, usual: &str| dice.mostly(usual, &NUMBERS, 40);
    let column = |dice: &mut Dice, name: &str| dice.mostly(name, &["b", "z"], 100);
    let (first, second) = (column(dice, "a"), column(dice, "b"));
    let (mean, std) = ([number(dice, "1"), number(dice, "2")], [number(dice, "1"), number(dice, "3")]);
    let given =
        format!("{{\"given\": {{\"mean\": [{}, {}], \"std\": [{}, {}]}}}}", mean[0], mean[1], std[0], std[1]);
    let standardise = match dice.below(40) {
        0 => "\"federated\"".to_owned(),
        1 => "\"site\"".to_owned(),
        2..=12 => "\"none\"".to_owned(),
        _ => given,
    };
    let constant = format!("{{\"constant\": {}}}", number(dice, "0"));
    let usual = ["\"refuse\"", "\"drop\"", constant.as_str()];
    let missing = if dice.once_in(12) { "\"mean\"" } else { *dice.pick(&usual) };
    let batch = dice.mostly("4", &["0", "1", "12", "13", "1000000", "18446744073709551615"], 3);
    let epochs = dice.mostly("1", &["2", "0", "4294967295", "40"], 20);
    let optimizer = optimizer(dice);
    let clip = if dice.once_in(60) { ", \"gradient_norm_max\": 1.0" } else { "" };
    let weights = dice.mostly("uniform", &["examples"], 6);
    let codec = dice.mostly("exact", &["packed", "int8", "f16"], 10);
    let (norm, weight_max) = (number(dice, "5"), dice.mostly("100", &["1", "0", "12", "4294967295"], 12));
    let (mu, cohort) =
        (dice.mostly("0", &NUMBERS, 40), dice.mostly("4", &["0", "1", "18446744073709551615"], 40));
    let privacy = privacy(dice);
    let json = format!(
        "{{\"model\": {model}, \"data\": {{\"table\": {{\"label\": \"y\", \"target\": {target}, \
         \"features\": [\"{first}\", \"{second}\"], \"standardise\": {standardise}, \"missing\": {missing}}}}}, \
         \"training\": {{\"batch_size\": {batch}, \"epochs\": {epochs}, \"optimizer\": {optimizer}{clip}}}, \
         \"update\": {{\"norm_max\": {norm}, \"weights\": \"{weights}\", \"weight_max\": {weight_max}, \"codec\": \"{codec}\"}}, \
         \"personal_layers\": {personal}, \"proximal_mu\": {mu}, \"cohort_max\": {cohort}, \"privacy\": {privacy}}}"
    );
    (json, width)
}

fn optimizer(dice: &mut Dice) -> String {
    let rate = dice.mostly("0.1", &NUMBERS, 16);
    let decay = dice.mostly("0", &NUMBERS, 40);
    match dice.below(4) {
        0 => format!("{{\"adam\": {{\"learning_rate\": {rate}}}}}"),
        1 => format!("{{\"adamw\": {{\"learning_rate\": {rate}, \"weight_decay\": {decay}}}}}"),
        _ => {
            let momentum = dice.mostly("0", &["0.9", "1", "-1", "0.999999"], 16);
            format!(
                "{{\"sgd\": {{\"learning_rate\": {rate}, \"momentum\": {momentum}, \"weight_decay\": {decay}}}}}"
            )
        }
    }
}

/// What is promised; always something that must hold against the server.
fn privacy(dice: &mut Dice) -> String {
    // Near what a few trainings cost, so that some are paid for and some are not; seldom, since only the slow accountant can
    // refuse.
    let budget = |dice: &mut Dice| match dice.below(300) {
        0 => dice.between(0.05, 6.0).to_string(),
        1 => dice.between(2.0, 60.0).to_string(),
        _ => "1e6".to_owned(),
    };
    let noise = |dice: &mut Dice| dice.mostly("2", &["0.7", "8", "1e-10", "1e9", "1e30", "100", "3.5"], 8);
    let metrics = |dice: &mut Dice| {
        let outside = ", \"metrics\": \"outside_the_guarantee\"";
        if dice.once_in(4) { outside } else { "" }
    };
    let delta = |dice: &mut Dice| dice.mostly("1e-5", &["1e-9", "0.1", "1", "0", "1e-300"], 40);
    let examples = format!(
        "\"examples\": {{\"noise_multiplier\": {}, \"norm_max\": {}, \"delta\": {}, \"epsilon_max\": {}{}}}",
        noise(dice),
        dice.mostly("1", &NUMBERS, 40),
        delta(dice),
        budget(dice),
        metrics(dice)
    );
    let local = format!(
        "\"local\": {{\"noise_multiplier\": {}, \"delta\": {}, \"epsilon_max\": {}{}}}",
        noise(dice),
        delta(dice),
        budget(dice),
        metrics(dice)
    );
    let central = "\"central\": {\"population\": \"p\", \"relation\": \"zero_out\", \"delta\": 1e-5, \"epsilon_max\": 100, \
                   \"noise_multiplier\": 2, \"rounds\": 50, \"denominator\": 4, \"sampling\": {\"availability\": \
                   {\"participations_max\": 50}}, \"noise\": \"independent\", \"clipping\": \"fixed\", \"metrics\": \"off\", \
                   \"clients_min\": 1}";
    match dice.below(10) {
        0 | 1 => format!("{{{local}}}"),
        2 => format!("{{{local}, {examples}}}"),
        3 => format!("{{{central}, {examples}}}"),
        _ => format!("{{{examples}}}"),
    }
}
