//! Which files go with a commit, and which wait.

use std::fs::File;
use std::path::Path;

use super::super::place::Place;
use super::super::tests::{RUN, begin, commit, layout, submit};

fn blobs_in(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("blobs")).unwrap().count()
}

#[tokio::test]
async fn a_commit_looks_at_no_file_but_those_that_it_puts_out_of_use() {
    let dir = Place::in_sqlite();
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let orphan = dir.path().join("blobs").join(format!("{}.safetensors", "ab".repeat(32)));
    std::fs::write(&orphan, "left behind by a crash").unwrap();
    for round in 1..=6u8 {
        store.commit(RUN, &layout(), &commit(round.into(), [f32::from(round); 3])).await.unwrap();
    }
    // The first model and six more, the optimizer's last two states, and what only a walk over everything finds.
    assert_eq!(blobs_in(dir.path()), 7 + 2 + 1);
    store.close().await;
    drop(store);
    dir.open().await.close().await;
    assert!(!orphan.exists() && blobs_in(dir.path()) == 9);
}

#[tokio::test]
async fn files_that_are_out_of_use_while_a_copy_is_made_go_with_a_later_commit() {
    let dir = Place::in_sqlite();
    let store = dir.open().await.keeping(Some(1));
    submit(&store, RUN, &begin([0.0; 3])).await;
    let copying = File::options().create(true).append(true).open(dir.path().join("copying")).unwrap();
    copying.lock().unwrap();
    for round in 1..=4u8 {
        store.commit(RUN, &layout(), &commit(round.into(), [f32::from(round); 3])).await.unwrap();
    }
    assert_eq!(blobs_in(dir.path()), 5 + 4, "nothing goes while a copy is made");
    copying.unlock().unwrap();
    store.commit(RUN, &layout(), &commit(5, [5.0; 3])).await.unwrap();
    // The last model and the spare one before it, each with its optimizer's state.
    assert_eq!(blobs_in(dir.path()), 4);
}
