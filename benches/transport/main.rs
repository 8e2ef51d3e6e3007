//! How fast a model goes down to eight sites and their updates come up, beside the same bytes copied over bare QUIC, and
//! what the server's memory peaks at meanwhile.
//!
//! ```text
//! cargo bench --bench transport                      25,000,000 parameters (100 MB), 8 sites
//! cargo bench --bench transport -- --parameters N    a model of another size
//! ```
//!
//! The server is a process of its own with its default limits; the sites are agents in this process. Their learner waits
//! until all of them have the model, so that the way down and the way up are timed apart, adds a constant, and answers:
//! the way up holds clipping, encoding, admission and the sum. It exits with failure when the server's peak of resident
//! memory reaches five times the model. It learns nothing and leaves the machine alone: everything is on loopback and in
//! a temporary folder.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod federation;
mod line;

use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use protocol::ClientId;
use server::net::Authority;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sites of the federation, and connections of the bare copy.
const SITES: usize = 8;
/// Rounds timed; one more comes before them.
const ROUNDS: usize = 3;
/// Bare copies timed before the federation, and again after it.
const COPIES: usize = 3;
/// The parameters of the model that the promise is about.
const PARAMETERS: usize = 25_000_000;
/// Without `--bench` (as under `cargo test --benches`) this size shows that it all works.
const PARAMETERS_SMALL: usize = 100_000;
/// The server's peak of resident memory stays below this many models.
const MODELS_MAX: f64 = 5.0;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match words[..] {
        ["federation-server", dir, parameters] => {
            runtime.block_on(federation::serve(Path::new(dir), parameters.parse()?))?;
            Ok(ExitCode::SUCCESS)
        }
        ["bare-server", dir, bytes] => {
            runtime.block_on(line::serve(Path::new(dir), bytes.parse()?))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => runtime.block_on(compare(parameters_asked(&words)?, words.contains(&"--bench"))),
    }
}

fn parameters_asked(words: &[&str]) -> anyhow::Result<usize> {
    if let Some(place) = words.iter().position(|word| *word == "--parameters") {
        let number = words.get(place + 1).context("--parameters needs a number")?;
        return number.parse().with_context(|| format!("`{number}` is not a number of parameters"));
    }
    Ok(if words.contains(&"--bench") { PARAMETERS } else { PARAMETERS_SMALL })
}

/// Seconds down to all sites and up from all sites.
#[derive(Clone, Copy, Debug)]
struct Leg {
    down: f64,
    up: f64,
}

async fn compare(parameters: usize, judged: bool) -> anyhow::Result<ExitCode> {
    let dir = tempfile::tempdir()?;
    issue_identities(dir.path())?;
    let bytes = parameters * size_of::<f32>();
    let mut bare = line::copy(dir.path(), bytes, COPIES).await?;
    let (rounds, peak) = federation::run(dir.path(), parameters, ROUNDS).await?;
    bare.extend(line::copy(dir.path(), bytes, COPIES).await?);

    println!("{SITES} sites, {parameters} parameters, {:.1} MB each way a site; medians", bytes as f64 / 1e6);
    let rate = |legs: &[Leg], side: fn(&Leg) -> f64| {
        SITES as f64 * bytes as f64 / 1e6 / median(legs.iter().map(side).collect())
    };
    for (name, side) in [("down", (|leg| leg.down) as fn(&Leg) -> f64), ("up", |leg| leg.up)] {
        let (ours, theirs) = (rate(&rounds, side), rate(&bare, side));
        println!("{name:>5}: {ours:7.0} MB/s, bare QUIC {theirs:7.0} MB/s, ratio {:.2}", ours / theirs);
    }
    let both = |leg: &Leg| leg.down + leg.up;
    let (ours, theirs) = (2.0 * rate(&rounds, both), 2.0 * rate(&bare, both));
    println!("{:>5}: {ours:7.0} MB/s, bare QUIC {theirs:7.0} MB/s, ratio {:.2}", "both", ours / theirs);
    println!("federation {rounds:.2?}");
    println!("bare       {bare:.2?}");
    let (encoding, adding) = federation::work_alone(parameters)?;
    println!(
        "the way up holds the sites' encoding, {encoding:.2} s when nothing travels, and the server's admission and sum, {adding:.2} s"
    );
    let models = peak as f64 / bytes as f64;
    println!("server's peak of resident memory: {:.0} MB, {models:.2} models", peak as f64 / 1e6);
    if judged && parameters >= PARAMETERS && models >= MODELS_MAX {
        println!("this is not below {MODELS_MAX} models: failed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The server's folder `identity`, and one named after each site.
fn issue_identities(dir: &Path) -> anyhow::Result<()> {
    let authority = Authority::create(&dir.join("authority"), SystemTime::now())?;
    authority.issue_server(&[], SystemTime::now())?.write_identity(&dir.join("identity"))?;
    for site in sites() {
        authority.issue_site(&site, SystemTime::now())?.write_identity(&dir.join(site.as_str()))?;
    }
    Ok(())
}

fn sites() -> Vec<ClientId> {
    let name = |index| ClientId::new(&format!("site-{index}")).expect("these characters are allowed");
    (1..=SITES).map(name).collect()
}

/// This program again, in another role; it ends when its standard input does.
struct Role {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<std::io::BufReader<ChildStdout>>,
}

impl Role {
    fn start(role: &str, dir: &Path, number: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(dir).arg(number.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let input = child.stdin.take().context("its input is piped")?;
        let output = child.stdout.take().context("its output is piped")?;
        Ok(Self { child, input, lines: std::io::BufRead::lines(std::io::BufReader::new(output)) })
    }

    /// Its next line, which must begin with `word`: what follows it.
    fn expect(&mut self, word: &str) -> anyhow::Result<String> {
        let line = self.lines.next().with_context(|| format!("it ended before it said `{word}`"))??;
        let rest = line.strip_prefix(word).with_context(|| format!("it said `{line}` for `{word}`"))?;
        Ok(rest.trim().to_owned())
    }

    /// The most bytes of memory it has had resident.
    fn peak(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .context("the peak of resident memory is read from /proc, on Linux alone")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("there is no VmHWM")?;
        Ok(1024 * kib.trim().parse::<u64>()?)
    }

    fn end(mut self) -> anyhow::Result<()> {
        drop(self.input);
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }
}

/// Waits, off the asynchronous threads, until whoever started this program closes its standard input.
async fn until_input_ends() -> anyhow::Result<()> {
    let wait = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(wait).await??;
    Ok(())
}

/// Seconds since the Unix epoch: the clock that two processes share.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
