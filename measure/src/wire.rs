//! How fast a model goes down to sites and their updates come up, beside the same bytes copied over bare QUIC.
//!
//! The server is a process of its own with its default limits, and so is the bare one; the sites are in this process. On the way
//! down they are agents whose time ends when the model has come. On the way up they speak the protocol with an update that
//! was encoded before, so that the server's time alone is measured: from the first byte of the first update to the new model.
//! Everything is on loopback and in a temporary folder.

mod federation;
mod line;
mod replay;

use std::path::Path;

use anyhow::bail;
use protocol::wire::DATAGRAM_MAX;
use serde::Serialize;

use super::role::{Program, Role};
use super::{issue_identities, load_average, median, now, sites};

/// The largest payload of packets where nothing larger is tried: quinn's default.
const DATAGRAM_USUAL: u16 = 1452;

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Values of the model.
    pub parameters: usize,
    /// Sites that take part in every round.
    pub sites: usize,
    /// Rounds that are timed; one more comes before them. Bare copies are as many before as after.
    pub rounds: usize,
}

/// One way of the bytes, medians.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Way {
    /// Seconds until all sites are through.
    pub seconds: f64,
    /// The same bytes over bare QUIC with the same packets, windows and buffers.
    pub bare_seconds: f64,
    /// The same with packets of the usual size.
    pub bare_usual_seconds: f64,
    /// `bare_seconds` over `seconds`.
    pub share_of_bare: f64,
    /// Bytes a second, all sites together.
    pub bytes_per_s: f64,
}

/// What came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Sites.
    pub sites: usize,
    /// Bytes of the model, and of each update.
    pub model_bytes: usize,
    /// From the opened round to the model in every site's memory.
    pub down: Way,
    /// From the first byte of the first update until the server has acknowledged the last byte of the last.
    pub up: Way,
    /// Seconds from the first byte of the first update to the new model.
    pub seconds_to_model: f64,
    /// What the server does of it when nothing travels: admission, sum and step.
    pub work_seconds: f64,
    /// The slower of bare QUIC and that work, over `seconds_to_model`.
    pub share_of_limit: f64,
    /// Seconds from the new model to the stored one.
    pub seconds_to_disk: f64,
    /// Seconds from the first answer that leaves an agent to the new model: other agents of this process still encode.
    pub agents_seconds_to_model: f64,
    /// Seconds that the sites' clipping and encoding takes, all at once, when nothing travels.
    pub encode_seconds: f64,
    /// The most bytes that a server has had resident.
    pub server_peak_rss_bytes: u64,
    /// The same in models.
    pub server_peak_models: f64,
    /// The machine's load when the measurement began.
    pub load_average: f64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sites, size, load) = (self.sites, self.model_bytes as f64 / 1e6, self.load_average);
        let plural = if sites == 1 { "" } else { "s" };
        writeln!(f, "{sites} site{plural}, {size:.1} MB each way a site, load {load}")?;
        for (name, way) in [("down", self.down), ("up", self.up)] {
            let Way { seconds, bare_seconds, bare_usual_seconds, share_of_bare, bytes_per_s } = way;
            writeln!(
                f,
                "{name:>5}: {seconds:.3} s, {:.0} MB/s; bare QUIC {bare_seconds:.3} s, share {share_of_bare:.2}; with packets \
                 of the usual size {bare_usual_seconds:.3} s",
                bytes_per_s / 1e6
            )?;
        }
        writeln!(
            f,
            "first byte to new model: {:.3} s; the server's own work {:.3} s when nothing travels; share of the limit {:.2}; \
             stored {:.3} s later",
            self.seconds_to_model, self.work_seconds, self.share_of_limit, self.seconds_to_disk
        )?;
        writeln!(
            f,
            "the same with agents that still encode ({:.3} s when nothing travels): {:.3} s",
            self.encode_seconds, self.agents_seconds_to_model
        )?;
        let peak = self.server_peak_rss_bytes as f64 / 1e6;
        write!(f, "server's peak of resident memory: {peak:.0} MB, {:.2} models", self.server_peak_models)
    }
}

/// Measures. `program` starts this very program in another role; its `main` must call [`super::role`] first.
///
/// # Errors
/// Whatever hinders the measurement, in a sentence.
pub async fn measure(order: Order, program: &Program) -> anyhow::Result<Measured> {
    let load_average = load_average();
    let dir = tempfile::tempdir()?;
    issue_identities(dir.path(), order.sites)?;
    let stage = Stage { program, dir: dir.path(), order };
    let bytes = stage.bytes();

    let mut bare = line::copy(&stage, DATAGRAM_MAX).await?;
    let mut usual = line::copy(&stage, DATAGRAM_USUAL).await?;
    let (rounds, peak) = federation::run(&stage).await?;
    let (replays, peak_up) = replay::run(&stage).await?;
    usual.extend(line::copy(&stage, DATAGRAM_USUAL).await?);
    bare.extend(line::copy(&stage, DATAGRAM_MAX).await?);
    let work = federation::work_alone(order)?;

    let total = (order.sites * bytes) as f64;
    let way = |seconds: f64, side: fn(&Leg) -> f64| {
        let (bare, usual) = (median(bare.iter().map(side)), median(usual.iter().map(side)));
        Way {
            seconds,
            bare_seconds: bare,
            bare_usual_seconds: usual,
            share_of_bare: bare / seconds,
            bytes_per_s: total / seconds,
        }
    };
    let down = way(median(rounds.iter().map(|round| round.down)), |leg| leg.down);
    let up = way(median(replays.iter().map(|replay| replay.acknowledged)), |leg| leg.up);
    let seconds_to_model = median(replays.iter().map(|replay| replay.model));
    // What one process notes may come to its ear later than the bytes to the other's.
    if down.seconds.min(up.seconds).min(seconds_to_model) <= 0.0 {
        bail!("a model of {} parameters is through before a round can be timed; take more", order.parameters);
    }
    let server_peak_rss_bytes = peak.max(peak_up);
    Ok(Measured {
        sites: order.sites,
        model_bytes: bytes,
        down,
        up,
        seconds_to_model,
        work_seconds: work.server,
        share_of_limit: up.bare_seconds.max(work.server) / seconds_to_model,
        seconds_to_disk: median(replays.iter().map(|replay| replay.stored)),
        agents_seconds_to_model: median(rounds.iter().map(|round| round.up)),
        encode_seconds: work.sites,
        server_peak_rss_bytes,
        server_peak_models: server_peak_rss_bytes as f64 / bytes as f64,
        load_average,
    })
}

/// A server of such a federation, in a process of its own, until its standard input ends.
pub(super) async fn serve(dir: &Path, order: Order) -> anyhow::Result<()> {
    federation::serve(dir, order).await
}

/// The far end of a bare line, in a process of its own, until its standard input ends.
pub(super) async fn serve_bare(dir: &Path, bytes: usize, datagram_max: u16) -> anyhow::Result<()> {
    line::serve(dir, bytes, datagram_max).await
}

/// Where a measurement takes place.
struct Stage<'a> {
    program: &'a Program,
    dir: &'a Path,
    order: Order,
}

impl Stage<'_> {
    fn bytes(&self) -> usize {
        self.order.parameters * size_of::<f32>()
    }

    /// A server of the federation, and where it listens.
    fn federation(&self) -> anyhow::Result<(Role, String)> {
        let Order { parameters, sites, rounds } = self.order;
        let words = format!("federation|{}|{parameters}|{sites}|{rounds}", self.dir.display());
        let mut server = Role::start(self.program, &words)?;
        let address = server.expect("listening")?;
        Ok((server, address))
    }
}

/// Seconds down to all sites and up from all sites.
#[derive(Clone, Copy, Debug)]
struct Leg {
    down: f64,
    up: f64,
}
