//! What a release's noise costs: the sliced sampler beside the plain one, at several sigmas and numbers of threads.
//!
//! Run `cargo bench -p privacy --bench noise`. Prints the least of a few runs; it asserts nothing.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::time::Instant;

use privacy::noise::{NoiseError, NoiseSource, Provenance, Sigma, add_noise, reference};

/// Parameters of a small convolutional network.
const COORDINATES: usize = 1_660_000;

type AddNoise = fn(&mut [i64], Sigma, NoiseSource, usize) -> Result<Provenance, NoiseError>;

fn main() {
    println!("{COORDINATES} coordinates; ns a sample and ms in all, least of the runs");
    println!("{:>10} {:>8} {:>8} {:>10} {:>8}", "sampler", "sigma", "threads", "ns/sample", "ms");
    let started = Instant::now();
    let (source, sigma) = (NoiseSource::from_entropy(), Sigma::whole(1 << 30));
    let (source, sigma) = (source.expect("the system has entropy"), sigma.expect("2^30 is below 2^56"));
    let outcome = add_noise(&mut [], sigma, source, 1);
    println!("a release of nothing: {:.2} ms, {outcome:?}", started.elapsed().as_secs_f64() * 1e3);
    for bits in [0, 3, 6, 20, 28, 36, 50] {
        let sigma = Sigma::whole(1 << bits).expect("a power of two below 2^56");
        for threads in [1, 2, 4] {
            report("sliced", add_noise, sigma, bits, threads, 7);
        }
        if bits <= 28 {
            report("plain", reference::add_noise, sigma, bits, 1, 2);
        }
    }
}

fn report(name: &str, add_noise: AddNoise, sigma: Sigma, bits: u32, threads: usize, runs: usize) {
    let mut values = vec![0; COORDINATES];
    let run = |_| {
        let source = NoiseSource::from_entropy().expect("the operating system has entropy");
        let started = Instant::now();
        let provenance = add_noise(&mut values, sigma, source, threads).expect("the sums stay small");
        assert_eq!(provenance, Provenance::Entropy);
        started.elapsed().as_secs_f64()
    };
    let least = (0..runs).map(run).fold(f64::INFINITY, f64::min);
    let each = least * 1e9 / COORDINATES as f64;
    println!("{name:>10} {:>8} {threads:>8} {each:>10.1} {:>8.1}", format!("2^{bits}"), least * 1e3);
}
