//! What a sample of noise costs beside OpenDP's, per thread, and how noise scales with threads.
//!
//! `cargo run --release` in this folder. All three samplers draw the same distribution exactly: OpenDP 0.16
//! (`sample_discrete_gaussian`), the plain loop of Canonne, Kamath, Steinke 2020 in 128 bits, and the sampler of releases.
//! They take turns, and the least of the turns counts. Beside the clock stands the time the kernel gave to the thread,
//! since other programs share the machine; ratios are of the latter. It asserts nothing: whether the samplers agree is for `cargo
//! test --release`. Needs the /proc of Linux.

mod samplers;
mod watch;

use std::error::Error;
use std::time::Duration;

use privacy::noise::{NoiseSource, Sigma, add_noise, reference};

use watch::Watch;

/// Turns of each sampler.
const TURNS: usize = 5;
/// Parameters of the convolutional network of McMahan et al. 2017.
const COORDINATES: usize = 1_663_370;
/// Samples of one turn: OpenDP, plain, ours. Each turn takes at least a tenth of a second.
const SAMPLES: [usize; 3] = [40_000, 400_000, COORDINATES];

fn main() -> Result<(), Box<dyn Error>> {
    beside_opendp()?;
    println!();
    threads()
}

/// ns a sample on one thread.
fn beside_opendp() -> Result<(), Box<dyn Error>> {
    println!("ns a sample on one thread, processor time (clock); least of {TURNS} turns");
    println!(
        "{:>8} {:>18} {:>18} {:>18} {:>9} {:>9}",
        "sigma", "OpenDP", "plain", "ours", "OpenDP/", "plain/"
    );
    for bits in [6, 10, 20, 28] {
        let sigma = Sigma::whole(1 << bits)?;
        let mut least = [[Duration::MAX; 2]; 3];
        for _ in 0..TURNS {
            let turns = [
                timed(|| samplers::opendp(SAMPLES[0], sigma).map(drop))?,
                timed(|| noise(SAMPLES[1], |values, source| reference::add_noise(values, sigma, source, 1)))?,
                timed(|| noise(SAMPLES[2], |values, source| add_noise(values, sigma, source, 1)))?,
            ];
            for (least, turn) in least.iter_mut().zip(turns) {
                *least = [least[0].min(turn[0]), least[1].min(turn[1])];
            }
        }
        let each =
            |sampler: usize, of: usize| least[sampler][of].as_secs_f64() * 1e9 / SAMPLES[sampler] as f64;
        let shown = |sampler: usize| format!("{:.1} ({:.1})", each(sampler, 0), each(sampler, 1));
        println!(
            "{:>8} {:>18} {:>18} {:>18} {:>9.1} {:>9.1}",
            format!("2^{bits}"),
            shown(0),
            shown(1),
            shown(2),
            each(0, 0) / each(2, 0),
            each(1, 0) / each(2, 0)
        );
    }
    Ok(())
}

/// The noise of one release of a model, by threads. Threads share no state, so on two free cores two are twice as fast when their
/// work together is that of one; the clock shows it on an idle machine only.
fn threads() -> Result<(), Box<dyn Error>> {
    let turns = 8 * TURNS;
    println!(
        "{COORDINATES} coordinates at sigma 2^30: ms by the clock, least of {turns} turns; processor time of all threads, mean"
    );
    let sigma = Sigma::whole(1 << 30)?;
    let mut least = [Duration::MAX; 2];
    let mut work = [Duration::ZERO; 2];
    for _ in 0..turns {
        for threads in 1..=2 {
            let watch = Watch::start()?;
            noise(COORDINATES, |values, source| add_noise(values, sigma, source, threads))?;
            let spent = watch.stop()?;
            least[threads - 1] = least[threads - 1].min(spent.wall);
            work[threads - 1] += spent.process;
        }
    }
    let least = least.map(|least| least.as_secs_f64() * 1e3);
    let work = work.map(|work| work.as_secs_f64() * 1e3 / turns as f64);
    for threads in 0..2 {
        println!("{:>8} {:>12.1} {:>12.1}", threads + 1, least[threads], work[threads]);
    }
    println!(
        "two threads: {:.2} times as fast, {:.2} times the work",
        least[0] / least[1],
        work[1] / work[0]
    );
    Ok(())
}

/// Processor time of this thread and time by the clock.
fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<[Duration; 2], Box<dyn Error>> {
    let watch = Watch::start()?;
    work()?;
    let spent = watch.stop()?;
    Ok([spent.thread, spent.wall])
}

fn noise<T, E: Error + 'static>(
    count: usize,
    add: impl FnOnce(&mut [i64], NoiseSource) -> Result<T, E>,
) -> Result<(), Box<dyn Error>> {
    let mut values = vec![0; count];
    add(&mut values, NoiseSource::from_entropy()?)?;
    std::hint::black_box(values);
    Ok(())
}
