//! `consortia attack`: what an attacker gets out of a federation without privacy, and out of one with.
//!
//! Every command makes up its victims, attacks them twice and writes a drawing into a results folder. The noise of the
//! defence comes from the operating system, so that no two runs of it are alike, whatever the seed.

use std::path::{Path, PathBuf};

use ::privacy::noise::NoiseSource;
use clap::{Args, Subcommand};
use command::results::{Gallery, Results, draw_membership};
use protocol::Seed;
use serde_json::{Value, json};
use simulations::attack::{ConvolutionAttack, Leakage, LinearAttack, MembershipAttack};

use super::failure::{Failure, Kind, OrFail};
use super::folder::open_results;
use super::global::Global;

/// Pictures that are drawn of each attack.
const DRAWN: usize = 4;

#[derive(Debug, Subcommand)]
pub(super) enum AttackCommand {
    /// Reconstruct an image from the update of a dense layer.
    Linear(AttackArgs),
    /// Reconstruct an image from the update of a small convolutional network by optimisation.
    Cnn(AttackArgs),
    /// Infer from a model who took part in its training.
    Membership(AttackArgs),
}

#[derive(Debug, Args)]
pub(super) struct AttackArgs {
    /// The folder in which the results folder is made.
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// The seed of victims and searches; the noise of the defence never depends on it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is said at the end.
struct Report {
    findings: Value,
    text: String,
    drawing: &'static str,
}

pub(super) fn attack(command: &AttackCommand, global: &Global) -> Result<(), Failure> {
    let (name, args): (_, &AttackArgs) = match command {
        AttackCommand::Linear(args) => ("attack-linear", args),
        AttackCommand::Cnn(args) => ("attack-cnn", args),
        AttackCommand::Membership(args) => ("attack-membership", args),
    };
    let mut results = open_results(&args.out, name)?;
    let folder = results.folder().to_path_buf();
    let seed = Seed::from_number(args.seed);
    let report = match command {
        AttackCommand::Linear(_) => linear(seed, &folder),
        AttackCommand::Cnn(_) => convolution(seed, &folder),
        AttackCommand::Membership(_) => membership(seed, &folder),
    }?;
    conclude(&mut results, report, args.seed, global)
}

fn conclude(results: &mut Results, report: Report, seed: u64, global: &Global) -> Result<(), Failure> {
    let Report { mut findings, text, drawing } = report;
    findings["seed"] = json!(seed);
    results.event(&findings).or_fail(Kind::Run, "events.jsonl")?;
    let folder = results.folder();
    findings["results"] = json!(folder);
    findings["drawing"] = json!(folder.join(drawing));
    global.format.say(|| format!("{text}\ndrawing   {}", folder.join(drawing).display()), || findings);
    Ok(())
}

fn linear(seed: Seed, folder: &Path) -> Result<Report, Failure> {
    let attack = LinearAttack::default();
    let found = attack.run(seed, &mut NoiseSource::from_entropy).or_fail(Kind::Run, "attack linear")?;
    let caption = |text: &str| text.to_owned();
    let row = |one: &'_ simulations::attack::Reconstruction| {
        let psnr = |other: usize| format!("{:.1} dB", one.original.psnr(&one.defended[other]));
        (format!("{:.1} dB", one.original.psnr(&one.plain).min(99.9)), psnr(0), psnr(1))
    };
    let rows = found.pictures.iter().take(DRAWN).map(|one| {
        let (plain, summed, noised) = row(one);
        vec![
            (&one.original, caption("")),
            (&one.plain, plain),
            (&one.defended[0], summed),
            (&one.defended[1], noised),
        ]
    });
    let columns = ["original", "one update", "noised sum", "noised update"];
    let gallery =
        Gallery { title: "A dense layer's update, divided", columns: &columns, rows: rows.collect() };
    gallery.write(&folder.join("pictures.svg")).or_fail(Kind::Run, "pictures.svg")?;
    let margin = (found.summed - found.summed_chance).max(found.noised - found.noised_chance);
    let findings = json!({
        "attack": "linear",
        "paper": "Phong et al. 2018; Geiping et al. 2020, proposition 3.1",
        "clients": attack.clients,
        "adversary_plain": "a server that reads one client's update",
        "adversary_summed": "one who sees the noised sum of all clients, and no single update",
        "adversary_noised": "a server that reads one client's update, noised at the client for its record",
        "cosine_plain": found.plain,
        "cosine_plain_least": found.plain_least,
        "cosine_summed": found.summed,
        "chance_summed": found.summed_chance,
        "cosine_noised": found.noised,
        "chance_noised": found.noised_chance,
        "noise_multiplier": attack.noise_multiplier,
        "epsilon": found.epsilon,
        "delta": attack.delta,
        "succeeds_plain": found.plain_least > 0.99,
        "fails_defended": margin <= 0.05,
    });
    let text = format!(
        "{} clients trained one step of logistic regression on one picture each; cosines are means over the clients,\n\
         chance is the cosine with pictures of other digits that nobody trained on\n\
         no privacy, the server reads one update          cosine {:.4}, at least {:.4}\n\
         noised sum, nobody reads a single update         cosine {:.4}, chance {:.4}\n\
         noised at the client for its record, server reads cosine {:.4}, chance {:.4}\n\
         noise multiplier {}: epsilon {:.2} at delta {} for one release",
        attack.clients,
        found.plain,
        found.plain_least,
        found.summed,
        found.summed_chance,
        found.noised,
        found.noised_chance,
        attack.noise_multiplier,
        found.epsilon,
        attack.delta
    );
    Ok(Report { findings, text, drawing: "pictures.svg" })
}

fn convolution(seed: Seed, folder: &Path) -> Result<Report, Failure> {
    let attack = ConvolutionAttack::default();
    let generator = &mut seed.generator();
    let found = attack.run(generator, &mut NoiseSource::from_entropy).or_fail(Kind::Run, "attack cnn")?;
    let mut rows = Vec::new();
    let (mut plain, mut defended, mut grey) = (Vec::new(), Vec::new(), Vec::new());
    for one in &found.pictures {
        let [reached, held] = [&one.plain, &one.defended[0]].map(|picture| one.original.psnr(picture));
        rows.push(vec![
            (&one.original, String::new()),
            (&one.plain, format!("{reached:.1} dB")),
            (&one.defended[0], format!("{held:.1} dB")),
        ]);
        plain.push(reached);
        defended.push(held);
        grey.push(one.original.psnr_of_grey());
    }
    let columns = ["original", "one update", "noised update"];
    let gallery =
        Gallery { title: "A small convolutional network's update, inverted", columns: &columns, rows };
    gallery.write(&folder.join("pictures.svg")).or_fail(Kind::Run, "pictures.svg")?;
    let findings = json!({
        "attack": "cnn",
        "paper": "Zhu et al. 2019; Geiping et al. 2020, section 4",
        "victim": "two convolutions of stride 2 with sigmoids and a dense layer, random weights, drawn digits of 16 by 16",
        "adversary_plain": "a server that reads one client's update of one picture",
        "adversary_defended": "the same server; the gradient was clipped and noised at the client for its record",
        "psnr_plain": plain,
        "psnr_defended": defended,
        "psnr_even_grey": grey,
        "noise_multiplier": attack.noise_multiplier,
        "epsilon": found.epsilon,
        "delta": attack.delta,
        "succeeds_plain": plain.iter().all(|psnr| *psnr > 20.0),
        "fails_defended": defended.iter().all(|psnr| *psnr < 10.0),
    });
    let list = |values: &[f64]| values.iter().map(|v| format!("{v:.1}")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "each client trained one step on one drawn digit; a server reads its update and knows the model\n\
         no privacy                    PSNR {} dB\n\
         noised at the client          PSNR {} dB, the better of two priors, chosen with the original at hand\n\
         an even grey, knowing nothing PSNR {} dB\n\
         noise multiplier {}: epsilon {:.2} at delta {} for one update of one record",
        list(&plain),
        list(&defended),
        list(&grey),
        attack.noise_multiplier,
        found.epsilon,
        attack.delta
    );
    Ok(Report { findings, text, drawing: "pictures.svg" })
}

fn membership(seed: Seed, folder: &Path) -> Result<Report, Failure> {
    let attack = MembershipAttack::default();
    let generator = &mut seed.generator();
    let found =
        attack.run(generator, &mut NoiseSource::from_entropy).or_fail(Kind::Run, "attack membership")?;
    draw_membership(&folder.join("curve.svg"), &found).or_fail(Kind::Run, "curve.svg")?;
    let leakage = |leakage: &Leakage| {
        let rate = |rates: &simulations::attack::Rates| {
            json!({
                "false_positives": rates.false_positives,
                "true_positives": rates.true_positives,
                "allowed": found.allowed(rates.false_positives),
            })
        };
        json!({
            "rates": leakage.rates.iter().map(rate).collect::<Vec<_>>(),
            "area": leakage.area,
            "advantage": leakage.advantage,
            "epsilon_lower_bound": leakage.epsilon_lower_bound,
        })
    };
    let findings = json!({
        "attack": "membership",
        "paper": "Carlini et al. 2022, algorithm 1",
        "clients": attack.clients,
        "models": attack.models,
        "adversary": "one who sees the last model, knows the records in question, and can train models of the same kind",
        "plain": leakage(&found.plain),
        "defended": leakage(&found.defended),
        "noise_multiplier": attack.noise_multiplier,
        "rounds": attack.rounds,
        "epsilon": found.epsilon,
        "delta": found.delta,
        "succeeds_plain": found.plain.epsilon_lower_bound > found.epsilon,
        "fails_defended": found.defended.epsilon_lower_bound <= found.epsilon,
    });
    let line = |name: &str, leakage: &Leakage| {
        let [least, few, many] = leakage.rates.map(|rates| rates.true_positives);
        format!(
            "{name:<12} {least:>8.4} {few:>8.4} {many:>8.4} {:>8.3} {:>10.3} {:>12.3}",
            leakage.area, leakage.advantage, leakage.epsilon_lower_bound
        )
    };
    let [least, few, many] = found.plain.rates.map(|rates| found.allowed(rates.false_positives));
    let text = format!(
        "{} models of {} clients with one record each, half of them in; the attacker sees the last model, knows the\n\
         records and trains such models itself\n\
         true positives at   0.1 %    0.3 %      1 %     area  advantage  epsilon >=\n{}\n{}\n\
         allowed      {least:>8.4} {few:>8.4} {many:>8.4}                   {:>14.3}\n\
         private: noise multiplier {}, {} rounds: epsilon {:.2} at delta {} for one client",
        attack.models,
        attack.clients,
        line("no privacy", &found.plain),
        line("private", &found.defended),
        found.epsilon,
        attack.noise_multiplier,
        attack.rounds,
        found.epsilon,
        found.delta
    );
    Ok(Report { findings, text, drawing: "curve.svg" })
}
