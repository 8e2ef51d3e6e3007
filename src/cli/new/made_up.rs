//! Records that are nobody's: they follow from a seed and a rule that a small model can learn.

/// Numbers that follow from a seed (Steele, Lea, Flood 2014, SplitMix). Good enough to make things up.
pub(super) struct MadeUp(pub(super) u64);

impl MadeUp {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to but not including 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// About normal: the mean is 0 and the deviation 1.
    fn bell(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }
}

/// A file's name and its bytes.
pub(super) type File = (&'static str, Vec<u8>);

const SITES: [&str; 4] = ["north", "east", "south", "west"];

/// People with an age, a blood pressure and a habit, at four sites that differ in whom they see.
pub(super) fn table(chance: &mut MadeUp, rows: u32) -> Vec<File> {
    let mut text = "site,split,age,pressure,smoker,ill\n".to_owned();
    for (place, site) in SITES.iter().enumerate() {
        for row in 0..rows {
            let age = (50.0 + 3.0 * place as f64 + 12.0 * chance.bell()).clamp(18.0, 99.0);
            let pressure = 130.0 + 0.4 * (age - 55.0) + 15.0 * chance.bell();
            let smokes = chance.share() < 0.3;
            let risk = (age - 55.0) / 12.0 + (pressure - 130.0) / 18.0 + if smokes { 1.0 } else { -0.5 };
            let ill = u8::from(chance.share() < 1.0 / (1.0 + (-1.5 * risk).exp()));
            let split = if row % 4 == 3 { "test" } else { "train" };
            let pressure = if chance.share() < 0.02 { String::new() } else { format!("{pressure:.0}") };
            let smoker = if smokes { "yes" } else { "no" };
            text += &format!("{site},{split},{age:.0},{pressure},{smoker},{ill}\n");
        }
    }
    vec![("records.csv", text.into_bytes())]
}

/// Pictures of 12 by 12 bytes in three kinds, with noise.
pub(super) fn images(chance: &mut MadeUp) -> Vec<File> {
    let picture = |chance: &mut MadeUp, kind: u64| -> Vec<u8> {
        let (phase, x, y) = (chance.below(4), 3 + chance.below(6), 3 + chance.below(6));
        let bright = |row: u64, column: u64| match kind {
            0 => (row + phase) % 4 < 2,
            1 => (column + phase) % 4 < 2,
            _ => row.abs_diff(y).pow(2) + column.abs_diff(x).pow(2) < 8,
        };
        let place = |place: u64| if bright(place / 12, place % 12) { 200.0 } else { 40.0 };
        (0..144).map(|at| (place(at) + 25.0 * chance.bell()).clamp(0.0, 255.0) as u8).collect()
    };
    let names = ["train-images.idx", "train-labels.idx", "test-images.idx", "test-labels.idx"];
    arrays(chance, names, &[12, 12], 3, picture)
}

/// Words of two made-up languages: one likes pairs of a vowel and a consonant, the other clusters.
pub(super) fn text(chance: &mut MadeUp) -> Vec<File> {
    let record = |chance: &mut MadeUp, language: u64| -> Vec<u8> {
        let (vowels, others) = (b"aeiou", b"bcdfghjklmnprstvz");
        let symbol = |chance: &mut MadeUp, from: &[u8]| from[chance.below(from.len() as u64) as usize] - b'a';
        let next = |chance: &mut MadeUp, at: u32| match (at % 7, language) {
            (6, _) => 26,
            (place, 0) if place % 2 == 0 => symbol(chance, others),
            (place, 1) if place % 3 != 2 => symbol(chance, others),
            _ => symbol(chance, vowels),
        };
        (0..20).map(|at| next(chance, at)).collect()
    };
    let names = ["train-text.idx", "train-labels.idx", "test-text.idx", "test-labels.idx"];
    arrays(chance, names, &[20], 2, record)
}

/// 480 records to train and 120 to test, of as many kinds, as IDX files.
fn arrays(
    chance: &mut MadeUp,
    names: [&'static str; 4],
    shape: &[u32],
    kinds: u64,
    make: impl Fn(&mut MadeUp, u64) -> Vec<u8>,
) -> Vec<File> {
    let mut files = Vec::new();
    for (count, names) in [(480u32, [names[0], names[1]]), (120, [names[2], names[3]])] {
        let labels: Vec<u8> = (0..count).map(|_| chance.below(kinds) as u8).collect();
        let samples: Vec<u8> = labels.iter().flat_map(|kind| make(chance, u64::from(*kind))).collect();
        files.push((names[0], idx(&[&[count], shape].concat(), &samples)));
        files.push((names[1], idx(&[count], &labels)));
    }
    files
}

/// Unsigned bytes in the format of the MNIST files.
fn idx(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    file.extend(shape.iter().flat_map(|length| length.to_be_bytes()));
    file.extend(bytes);
    file
}
