//! What codecs do to a federation: other bits, and a model that is as good.

use crate::{COMPRESSED, PLAIN, Variant, simulated};

/// Rounds after which the plan has learned what it learns.
const LEARNED: u32 = 20;

/// The model's fingerprint and the share of the sites' test records that it gets right.
fn learned(update: &str) -> (String, f64) {
    let outcome = simulated(2, LEARNED, Variant { update, ..PLAIN });
    let pooled = outcome.rounds.last().and_then(|round| round.sites).and_then(|metrics| metrics.accuracy);
    (outcome.model.sha256(), pooled.unwrap())
}

#[test]
fn what_is_compressed_is_learned_as_well() {
    let (exact, well) = learned(PLAIN.update);
    assert!(well > 0.7, "{well}");
    let lossless = learned("[update]\ncodec = \"packed\"\n");
    assert_eq!(lossless, (exact.clone(), well), "what loses nothing changes no bit");
    let codecs = ["\"f16\"", "\"bf16\"", "\"int8\"", "{ top_k = { fraction = 0.1 } }"];
    let codecs = codecs.map(|codec| format!("[update]\ncodec = {codec}\n"));
    let broadcasts = ["f16", "bf16"].map(|codec| format!("[update]\nbroadcast = \"{codec}\"\n"));
    for update in codecs.iter().chain(&broadcasts).map(String::as_str).chain([COMPRESSED.update]) {
        let (model, accuracy) = learned(update);
        println!("{update:?}: {accuracy:.4}, exact {well:.4}");
        assert_ne!(model, exact, "{update}");
        // Of 127 test records a handful may fall the other way.
        assert!(accuracy > well - 0.05, "{update}: {accuracy} and {well} exactly");
    }
}
