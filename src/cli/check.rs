//! `consortia check`: reads a file as the program would, and says what it means.

use std::path::{Path, PathBuf};

use clap::Args;
use learning::device::Device;
use learning::{Models, gradient_path};
use privacy::accounting::Figure;
use privacy::chain::Digest;
use privacy::counted;
use protocol::{ClientId, DataSpec, Name, Seed, Spec, Weighting};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use server::net::Database;
use server::{MethodPlan, MethodStep, Plan};
use simulations::{Adversaries, Population, Scenario};

use super::columns::read_settings_text;
use super::explain::promises;
use super::failure::{Failure, Kind, OrFail};
use super::folder::{ServerFile, ServerFolder, SiteFile};
use super::global::Global;
use super::kinds::{FileKind as Told, or_what_it_is};
use super::modes::wide;
use super::output::{some_names, text_table};
use super::plans::{plan_of, scenario_of};
use super::privacy::finite;
use super::settings::FileKind;
use super::shell::quoted;
use super::start::started;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A federation, simulation, site, policy or server file.
    file: PathBuf,
}

/// What this command reads.
const SETTINGS: [Told; 4] = [Told::Plan, Told::Site, Told::Server, Told::Policy];

pub(super) fn check(args: &CheckArgs, global: &Global) -> Result<(), Failure> {
    let path = args.file.display().to_string();
    let what = |failure| or_what_it_is(&args.file, &SETTINGS, "a plan, policy or file of settings", failure);
    let text = read_settings_text(&args.file, None).map_err(what)?;
    let base = args.file.parent().unwrap_or_else(|| Path::new(""));
    let read = server::read_toml(&text).or_fail(Kind::Configuration, &path);
    let table: toml::Table = read.map_err(what)?;
    let facts = match FileKind::of(&table, &args.file) {
        FileKind::Federation => {
            let plan = started(plan_of(&text).or_fail(Kind::Configuration, &path)?, &args.file)?.plan;
            plan_facts(&plan, "federation").or_fail(Kind::Configuration, &path)?
        }
        FileKind::Simulation => {
            let lookup = |name: &str| std::env::var(name).ok();
            let mut scenario = scenario_of(&text, base, &lookup).or_fail(Kind::Configuration, &path)?;
            scenario.plan = started(scenario.plan, &args.file)?.plan;
            let mut facts = plan_facts(&scenario.plan, "simulation").or_fail(Kind::Configuration, &path)?;
            if let Some(clients) = scenario.simulation.clients {
                facts.push(("virtual clients", json!(clients)));
            }
            facts.extend(attack_facts(&scenario).or_fail(Kind::Configuration, &path)?);
            facts
        }
        FileKind::Site => site_facts(&args.file)?,
        FileKind::Policy => policy_facts(&args.file)?,
        FileKind::Server => {
            warn_of_modes(ServerFolder(base.to_path_buf()).private().iter().map(PathBuf::as_path));
            let file = ServerFile::parse(&text, base).or_fail(Kind::Configuration, &path)?;
            let limits = file.limits();
            let state = match file.database(&ServerFolder(base.to_path_buf()), None)? {
                Database::Sqlite => "SQLite".to_owned(),
                Database::Postgres(postgres) => format!("{postgres}, as replica {}", postgres.replica()),
            };
            vec![
                ("kind", json!("server")),
                ("federation", json!(federation(&base.join("identity"))?)),
                ("listens on", json!(file.listen.to_string())),
                ("sites reach it at", json!(reached(&file.addresses))),
                ("keeps its rows in", json!(state)),
                (
                    "admin port",
                    json!(file.admin.map_or_else(|| "none".to_owned(), |admin| admin.listen.to_string())),
                ),
                ("connections at most", json!(limits.connections_max)),
                ("evaluates on its own records", json!(file.central.is_some())),
            ]
        }
    };
    let text = || {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let rows: Vec<Vec<String>> =
            facts.iter().map(|(name, value)| vec![(*name).to_owned(), plain(value)]).collect();
        format!("{path} is in order\n{}", text_table(&rows))
    };
    let object = || {
        let named = facts.iter().map(|(name, value)| (key_of(name), value.clone()));
        Value::Object(named.collect())
    };
    global.format.say(text, object);
    Ok(())
}

/// The fingerprint of the federation whose root is in an identity's folder, as `server init` has printed it.
fn federation(identity: &Path) -> Result<String, Failure> {
    let root = identity.join("ca.pem");
    let der = CertificateDer::from_pem_file(&root).or_fail(Kind::Configuration, root.display())?;
    Ok(Digest::of(&der).to_string())
}

/// Where sites reach a server.
fn reached(addresses: &[String]) -> String {
    if addresses.is_empty() {
        return "no address is named (`addresses`): `consortia invite create` needs --address HOST:PORT"
            .to_owned();
    }
    addresses.join(", ")
}

/// Names what others on this machine have rights on.
fn warn_of_modes<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    wide(paths).iter().for_each(|one| tracing::warn!("{one}"));
}

type Facts = Vec<(&'static str, Value)>;

/// What a fact is called for programs, where people read a piece of a sentence.
const KEYS: [(&str, &str); 18] = [
    ("gradients on a CPU are", "cpu_gradients"),
    ("parameters that stay at sites", "personal_parameters"),
    ("updates travel as", "update_codec"),
    ("the model travels as", "broadcast_codec"),
    ("largest norm of an update", "norm_max"),
    ("one client counts", "weighting"),
    ("records are", "records"),
    ("an answer to", "answers"),
    ("a site allows it by", "policy"),
    ("server memory for the sum", "sum_bytes"),
    ("server memory for updates at most", "updates_bytes_max"),
    ("listens on", "listen"),
    ("sites reach it at", "addresses"),
    ("keeps its rows in", "database"),
    ("connections at most", "connections_max"),
    ("evaluates on its own records", "central_evaluation"),
    ("trains on", "device"),
    ("for a plan", "next"),
];

/// The key of a fact in JSON.
fn key_of(name: &str) -> String {
    let known = KEYS.into_iter().find(|(told, _)| *told == name);
    known.map_or_else(|| name.replace(' ', "_"), |(_, key)| key.to_owned())
}

/// What a plan of a method does; what it costs, the method knows alone.
fn method_facts(plan: &Plan, method: &MethodPlan, kind: &str) -> Result<Facts, String> {
    let (spec, MethodPlan { name, version, .. }) = (&plan.spec, method);
    let layout = Models::new().layout_of(spec).map_err(|error| error.to_string())?;
    let mut facts = vec![
        ("kind", json!(kind)),
        ("name", json!(plan.name)),
        ("rounds", json!(plan.rounds)),
        ("method", json!(format!("{name}, version {version}"))),
        ("values", json!(layout.len())),
        ("statistics round", json!(!spec.statistics().is_empty())),
        ("clients needed", json!(plan.cohort.clients_min)),
        ("quorum", json!(plan.cohort.quorum)),
        ("records are", json!(records(spec))),
        ("bytes up per client and round", json!(answer_bytes(method))),
        ("an answer to", json!(answers(method))),
        ("a site allows it by", json!(format!("tasks = [{}] in its policy.toml", tasks_of(plan, name)))),
    ];
    facts.extend(privacy_facts(plan)?);
    Ok(facts)
}

/// The tasks that a site's policy has to list for a plan of a method.
fn tasks_of(plan: &Plan, method: &Name) -> String {
    let statistics = if plan.spec.statistics().is_empty() { "" } else { "\"statistics\", " };
    format!("{statistics}\"method:{method}\"")
}

/// Bytes of all the answers that a site sends in a round of a method, at most.
fn answer_bytes(method: &MethodPlan) -> u64 {
    let steps = method.planned.steps();
    // A plan with more than a machine could hold is refused when it is read.
    steps.iter().map(|step| step.answer.bytes_max().unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
}

/// The same step by step.
pub(super) fn answers(method: &MethodPlan) -> String {
    let told = |step: &MethodStep| {
        let bytes = step.answer.bytes_max().unwrap_or(u64::MAX);
        format!("`{}: {}` has at most {bytes} bytes", method.name, step.name)
    };
    method.planned.steps().iter().map(told).collect::<Vec<_>>().join(", ")
}

/// What a rule against corrupted clients does not protect.
fn warn_of_statistics(plan: &Plan) {
    if plan.aggregation.is_some() && !plan.spec.statistics().is_empty() {
        tracing::warn!(
            "data.standardise = \"federated\": means and deviations of columns come from a plain sum of what all sites say, which the rule in \
             [aggregation] does not protect: one corrupted site can choose them; standardise = \"site\" asks nobody"
        );
    }
}

/// What a plan costs and does.
fn plan_facts(plan: &Plan, kind: &str) -> Result<Facts, String> {
    if let Some(method) = &plan.method {
        return method_facts(plan, method, kind);
    }
    warn_of_statistics(plan);
    let spec = &plan.spec;
    if spec.external().is_some() && spec.privacy.examples.is_some() {
        tracing::warn!(
            "privacy.examples: every site declines this of an external model, whose gradients nobody but its script sees"
        );
    }
    let layout = Models::new().layout_of(spec).map_err(|error| error.to_string())?;
    let shared = layout.shared_len();
    let lattice = spec
        .lattice_within(spec.update.norm_max, &layout.shared_lengths())
        .map_err(|error| error.to_string())?;
    if let Some(warning) = plan.coarse_step(&layout.shared_lengths()) {
        tracing::warn!("{warning}");
    }
    let model_bytes = 4 * shared as u64;
    let evaluations = (1..=plan.rounds).filter(|round| plan.evaluation.is_due(*round, plan.rounds)).count();
    let gradient = match spec.external() {
        Some(_) => json!("computed by each site's own program"),
        None => json!(gradient_path(spec, &Device::Cpu).map_err(|error| error.to_string())?),
    };
    let mut facts = vec![
        ("kind", json!(kind)),
        ("name", json!(plan.name)),
        ("rounds", json!(plan.rounds)),
        ("evaluated rounds", json!(evaluations)),
        ("parameters", json!(layout.len())),
        ("gradients on a CPU are", gradient),
        ("parameters that stay at sites", json!(layout.len() - shared)),
        ("statistics round", json!(!spec.statistics().is_empty())),
        ("clients needed", json!(plan.cohort.clients_min)),
        ("quorum", json!(plan.cohort.quorum)),
        ("bytes down per client and round", json!(4 * spec.update.broadcast.words(shared))),
        ("bytes up per client and round", json!(model_bytes.min(spec.update.codec.bytes_max(shared)))),
        ("updates travel as", json!(spec.update.codec)),
        ("the model travels as", json!(spec.update.broadcast)),
        match &plan.aggregation {
            None => ("server memory for the sum", json!(8 * shared)),
            Some(rule) => ("server memory for updates at most", json!(rule.memory_max)),
        },
        ("largest norm of an update", json!(spec.update.norm_max.value())),
        ("one client counts", json!(weight(spec))),
        ("aggregation", json!(aggregation(plan))),
        ("lattice step", json!(lattice.step())),
        ("records are", json!(records(spec))),
    ];
    facts.extend(privacy_facts(plan)?);
    Ok(facts)
}

/// What makes one vector of a round's updates, and how many corrupted clients it stands.
fn aggregation(plan: &Plan) -> String {
    let Some(rule) = &plan.aggregation else { return "the mean: tolerates no corrupted client".to_owned() };
    let (corrupted, clients) = (rule.corrupted, counted(rule.clients, "client"));
    let needed = counted(rule.rule.updates_min(), "update");
    format!(
        "{}: tolerates {corrupted} corrupted of the {clients} of a round, needs {needed}",
        rule.rule.describe()
    )
}

/// Who attacks a simulation, and how.
fn attack_facts(scenario: &Scenario) -> Result<Facts, String> {
    let (plan, simulation) = (&scenario.plan, &scenario.simulation);
    let Some(adversaries) = &simulation.adversaries else { return Ok(vec![]) };
    let attack = adversaries.attack.name();
    let names = Population::names(simulation).map_err(|error| error.to_string())?;
    let Some(names) = names else {
        let drawn = "the seed draws them among the clients that the data names";
        let count = match (adversaries.count, adversaries.share) {
            (Some(count), _) => counted(count, "client"),
            (None, share) => format!("a share of {} of the clients", share.unwrap_or(0.0)),
        };
        return Ok(vec![("attack", json!(format!("{attack} by {count}: {drawn}")))]);
    };
    let seed = Seed::from_number(simulation.seed);
    let drawn = Adversaries::draw(adversaries, seed, names.iter()).map_err(|error| error.to_string())?;
    let corrupted: Vec<&str> = drawn.corrupted().iter().map(ClientId::as_str).collect();
    let count = corrupted.len();
    let tolerated = plan.aggregation.as_ref().map_or(0, |rule| rule.corrupted);
    let beyond = match count > tolerated && plan.aggregation.is_some() {
        true => format!("; a round may have more of them than the {tolerated} that [aggregation] tolerates"),
        false => String::new(),
    };
    let clients = counted(names.len(), "client");
    let said = match count {
        0 => format!("{attack} by none of {clients}"),
        _ => format!("{attack} by {count} of {clients}: {}{beyond}", some_names(&corrupted)),
    };
    Ok(vec![("attack", json!(said))])
}

/// What a plan promises, and what that amounts to after all its rounds.
fn privacy_facts(plan: &Plan) -> Result<Facts, String> {
    let promises = promises(plan)?;
    if promises.is_empty() {
        return Ok(vec![
            ("privacy", json!(format!("none: the server sees {}", seen_of(plan)))),
            ("epsilon", json!("infinite (no [privacy])")),
        ]);
    }
    let mechanisms: Vec<String> =
        promises.iter().map(|promise| format!("for {}: {}", promise.unit, promise.mechanism)).collect();
    let mut facts = vec![("privacy", json!(mechanisms.join("; ")))];
    let counted = promises.iter().find_map(|promise| Some((promise, promise.epsilon()?)));
    if let Some((promise, epsilon)) = counted {
        facts.extend([
            ("epsilon", finite(epsilon.best())),
            ("epsilon by rdp", json!(epsilon.rdp.map(finite))),
            ("epsilon by pld", json!(epsilon.pld.map(finite))),
            ("delta", json!(promise.delta)),
            ("epsilon budget", json!(promise.epsilon_max)),
        ]);
    } else if let Some(promise) = promises.first() {
        let (most, delta) = (Figure(promise.epsilon_max), Figure(promise.delta));
        let said =
            format!("at most {most} at delta {delta} for {}, as each site accounts for it", promise.unit);
        facts.push(("epsilon", json!(said)));
    }
    Ok(facts)
}

/// What a server sees of a site where nothing is promised.
fn seen_of(plan: &Plan) -> String {
    match &plan.method {
        Some(MethodPlan { name, .. }) => format!("each site's answers to the method `{name}`"),
        None => "each site's clipped update".to_owned(),
    }
}

/// How much one client can count in a mean.
fn weight(spec: &Spec) -> String {
    match spec.update.weights {
        Weighting::Uniform => "as every other".to_owned(),
        Weighting::Examples => {
            format!("by its training records, {} of them at most (update.weight_max)", spec.update.weight_max)
        }
    }
}

fn records(spec: &Spec) -> String {
    match &spec.data {
        DataSpec::Table(table) => {
            format!("{} numeric and {} categorical columns", table.features.len(), table.categorical.len())
        }
        DataSpec::Tensor(tensor) => format!("arrays of shape {:?}", tensor.shape),
        DataSpec::Own => "what each site's own program reads".to_owned(),
    }
}

/// What a policy allows before any plan is known.
fn policy_facts(path: &Path) -> Result<Facts, Failure> {
    let (policy, _) = super::policy::read(path)?;
    let allows = if policy.allows_nothing() { "no task" } else { "tasks that keep its rules" };
    let budget = policy.budget().map_or_else(
        || "no limit of the site's own".to_owned(),
        |(epsilon, delta)| format!("epsilon {} at delta {}", Figure(epsilon), Figure(delta)),
    );
    Ok(vec![
        ("kind", json!("policy")),
        ("allows", json!(allows)),
        ("budget", json!(budget)),
        ("for a plan", json!(format!("consortia site policy check {} PLAN", quoted(path)))),
    ])
}

/// Checks what a site's file points at, as far as it can be known without the plan.
fn site_facts(path: &Path) -> Result<Facts, Failure> {
    let file = SiteFile::read(path)?;
    warn_of_modes([file.identity.as_path(), &file.state]);
    ::client::net::Identity::load(&file.identity).or_fail(Kind::Configuration, "")?;
    let certificate = file.identity.join("cert.pem");
    let pem = std::fs::read(&certificate).or_fail(Kind::Configuration, certificate.display())?;
    let name = server::net::site_of_pem(&pem).or_fail(Kind::Configuration, certificate.display())?;
    if let Some(data) = &file.data {
        data.check().or_fail(Kind::Configuration, format!("{}: data", path.display()))?;
    }
    let device = learning::device::select(&file.device).or_fail(Kind::Configuration, "device")?;
    let mut facts = vec![
        ("kind", json!("site")),
        ("name", json!(name.as_str())),
        ("federation", json!(federation(&file.identity)?)),
        ("server", json!(file.servers().join(", "))),
        ("trains on", json!(format!("{device:?}"))),
    ];
    if let Some(learner) = &file.learner {
        facts.push(("external models are trained by", json!(learner.told())));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_known_by_its_rules_and_a_fresh_one_by_its_name() {
        let is_policy = |text: &str, name: &str| {
            matches!(FileKind::of(&text.parse().unwrap(), Path::new(name)), FileKind::Policy)
        };
        for preset in [::client::PLAIN_POLICY, ::client::PRIVATE_POLICY, ::client::RECORDS_POLICY] {
            assert!(is_policy(preset, "ours.toml"));
        }
        assert!(is_policy("# every rule is a comment\n", "north/policy.toml"));
        assert!(!is_policy("", "federation.toml") && !is_policy("rounds = 3\n", "policy.toml"));
    }
}
