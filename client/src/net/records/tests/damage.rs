//! Random damages of each file of a site's books: a flipped bit, a cut, a missing file, an older copy. No start spends less than was
//! reserved, each refusal says what to do, and what it says works.

use super::*;

/// Damages of each file.
fn damages() -> u64 {
    if std::env::var_os("CONSORTIA_THOROUGH").is_some() { 200 } else { 12 }
}

/// Numbers that are the same in every run (SplitMix64; Steele, Lea and Flood 2014).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// Damages one file, and says how.
fn damage(files: &mut Files, name: &str, older: &[Files], numbers: &mut Numbers) -> String {
    let text = files.get_mut(name).unwrap();
    match numbers.below(5) {
        0 | 1 => {
            let (byte, bit) = (numbers.below(text.len()), numbers.below(8));
            text[byte] ^= 1 << bit;
            format!("{name}: bit {bit} of byte {byte} is flipped")
        }
        2 => {
            text.truncate(numbers.below(text.len()));
            format!("{name}: cut to {} bytes", text.len())
        }
        3 => {
            files.remove(name);
            format!("{name}: removed")
        }
        _ => {
            let life = numbers.below(older.len());
            files.insert(name.to_owned(), older[life][name].clone());
            format!("{name}: as it was {} starts ago", older.len() - life)
        }
    }
}

#[test]
fn no_damage_of_a_book_lets_a_site_start_with_less_than_it_has_spent() {
    let (_, lives) = lived(5);
    let (last, older) = lives.split_last().unwrap();
    let spent = epsilon(&SiteAccount::read(&last[LEDGER]).unwrap());
    let mut numbers = Numbers(22);
    for name in [LEDGER, AUDIT, HEADS] {
        for _ in 0..damages() {
            let mut damaged = last.clone();
            let what = damage(&mut damaged, name, older, &mut numbers);
            let state = folder(&damaged);
            match open(state.path()) {
                Ok(books) => assert!(epsilon(books.ledger.account()) >= spent, "{what}"),
                Err(refused) => {
                    let refused = refused.to_string();
                    assert!(refused.contains("site recover"), "{what}: {refused}");
                    assert_eq!(files(state.path()), damaged, "{what}: nothing was changed");
                    recover(state.path()).unwrap_or_else(|| panic!("{what}: nothing to recover"));
                    let books = open(state.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert!(epsilon(books.ledger.account()) >= spent, "{what}");
                }
            }
        }
    }
}

#[test]
fn one_book_of_three_that_is_whole_keeps_what_was_spent() {
    let (_, lives) = lived(5);
    let (last, older) = lives.split_last().unwrap();
    let spent = epsilon(&SiteAccount::read(&last[LEDGER]).unwrap());
    let mut numbers = Numbers(7);
    for _ in 0..damages() {
        for spared in [LEDGER, AUDIT, HEADS] {
            let mut damaged = last.clone();
            let mut what = String::new();
            for name in [LEDGER, AUDIT, HEADS].into_iter().filter(|name| *name != spared) {
                what.push_str(&damage(&mut damaged, name, older, &mut numbers));
                what.push_str("; ");
            }
            let state = folder(&damaged);
            if open(state.path()).is_err() {
                recover(state.path()).unwrap_or_else(|| panic!("{what}: nothing to recover"));
                open(state.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            let account = SiteAccount::read(&files(state.path())[LEDGER]).unwrap();
            assert!(epsilon(&account) >= spent, "{what}");
        }
    }
}
