//! A state whose models are in object storage: what is there, what is not, and what becomes of it when something goes wrong.

use object_store::memory::InMemory;
use privacy::correlation::NoiseMemory;

use super::super::blobs::{BlobError, Blobs, Piece};
use super::super::place::Place;
use super::super::tests::{RUN, begin, commit, layout, submit};
use super::super::{Store, StoreError};
use super::*;
use crate::{Checkpoint, Commit};

fn bucket() -> Arc<InMemory> {
    Arc::new(InMemory::new())
}

fn of(bucket: &Arc<InMemory>, federation: &str) -> Objects {
    Objects::new(Arc::clone(bucket) as Arc<dyn ObjectStore>, federation)
}

async fn lead(place: &Place, objects: &Objects) -> Result<Store, StoreError> {
    Store::lead_with(place.path(), &place.database("a"), Some(objects)).await
}

async fn models_in(objects: &Objects) -> Vec<String> {
    objects.below("models").list().await.unwrap()
}

fn noisy(round: u32, values: [f32; 3]) -> Commit {
    let done = commit(round, values);
    let noise = NoiseMemory::new(vec![vec![i64::from(round); 3], vec![-7; 3]]);
    Commit { checkpoint: Checkpoint { noise, ..done.checkpoint }, ..done }
}

#[tokio::test]
async fn with_object_storage_the_state_folder_holds_no_model_and_the_run_goes_on_all_the_same() {
    let (place, objects) = (Place::in_sqlite(), of(&bucket(), "ours"));
    let store = lead(&place, &objects).await.unwrap().keeping(Some(1));
    submit(&store, RUN, &begin([0.0; 3])).await;
    for round in 1..4u8 {
        store.commit(RUN, &layout(), &commit(round.into(), [f32::from(round); 3])).await.unwrap();
    }
    // The last model and the one before it, each with its optimizer's state.
    assert_eq!(models_in(&objects).await.len(), 4);
    assert!(!place.path().join("blobs").exists());
    store.close().await;
    drop(store);
    let store = lead(&place, &objects).await.unwrap();
    let stored = store.load(RUN).await.unwrap();
    assert_eq!(stored.checkpoint, commit(3, [3.0; 3]).checkpoint);
    let last = store.models(RUN).await.unwrap().pop().unwrap();
    assert_eq!(store.values(&last).await.unwrap().sha256(), last.line.sha256);
    assert!(last.place.contains("ours/models/") && last.place.ends_with(".safetensors"), "{}", last.place);
}

#[tokio::test]
async fn an_object_of_many_parts_reads_back_bit_for_bit_and_one_that_was_changed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..PART / 2).map(|value| value as f32 * 0.5).collect();
    let piece = [Piece { name: "w", shape: &[values.len()], values: &values }];
    let (memory, folder) = (of(&bucket(), "ours"), Objects::folder(dir.path().join("a b")).unwrap());
    for objects in [&memory, &folder] {
        let blobs = Blobs::open(objects.clone(), None).unwrap();
        let name = blobs.write(&piece, "a test").await.unwrap();
        assert!(blobs.read(&name).await.unwrap() == values);
        let copy = of(&bucket(), "copy");
        assert!(blobs.copy(&name, &Blobs::look(copy.clone())).await.unwrap());
        assert!(Blobs::look(copy).read(&name).await.unwrap() == values);
        let file = format!("{name}.safetensors");
        let mut bytes = objects.read(&file).await.unwrap().unwrap();
        bytes[PART + 1] ^= 1;
        objects.store.put(&objects.path(&file), bytes.into()).await.unwrap();
        let error = blobs.read(&name).await.unwrap_err();
        assert!(matches!(error, BlobError::Damaged { .. }) && error.to_string().contains(&name), "{error}");
        let copied = Objects::folder(dir.path().join("not")).unwrap();
        let target = Blobs::open(copied.clone(), None).unwrap();
        assert!(matches!(blobs.copy(&name, &target).await, Err(BlobError::Damaged { .. })));
        assert!(copied.list().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_folder_may_be_named_by_dots_by_a_link_and_with_any_character_of_a_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("a\tb\u{7f}#%20");
    std::fs::create_dir(&odd).unwrap();
    std::os::unix::fs::symlink(&odd, dir.path().join("link")).unwrap();
    for folder in [odd.join("../new/x"), dir.path().join("new/../new/../link/y"), odd.join("./z")] {
        let objects = Objects::folder(folder.clone()).unwrap();
        let blobs = Blobs::open(objects.clone(), None).unwrap();
        let name = blobs.write(&[Piece { name: "w", shape: &[1], values: &[1.0] }], "a test").await.unwrap();
        assert_eq!(blobs.read(&name).await.unwrap(), [1.0]);
        assert_eq!(objects.list().await.unwrap().len(), 1);
        let file = crate::net::store::paths::real_path(&folder).unwrap().join(format!("{name}.safetensors"));
        assert!(file.exists(), "{}", file.display());
    }
    let url = format!("file://{}/../shelf", dir.path().join("link").display());
    assert!(Objects::at(&url, "ours").unwrap().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_kill_left_behind_goes_when_a_server_begins_and_nothing_of_another_federation() {
    let (place, bucket) = (Place::in_sqlite(), bucket());
    let (ours, theirs) = (of(&bucket, "ours"), of(&bucket, "theirs"));
    let orphan = |objects: &Objects| objects.below("models").path("0-ab.safetensors");
    for objects in [&ours, &theirs] {
        bucket.put(&orphan(objects), b"x".to_vec().into()).await.unwrap();
    }
    let store = lead(&place, &ours).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    assert_eq!((models_in(&ours).await.len(), models_in(&theirs).await.len()), (1, 1));
    assert!(bucket.head(&orphan(&ours)).await.is_err());
}

#[tokio::test]
async fn a_commit_whose_model_cannot_be_stored_changes_nothing() {
    let place = Place::in_sqlite();
    let objects = Objects::at(&format!("file://{}/shelf", place.path().display()), "ours").unwrap();
    let store = lead(&place, &objects).await.unwrap();
    submit(&store, RUN, &begin([1.0; 3])).await;
    let (archive, away) = (place.path().join("shelf"), place.path().join("away"));
    std::fs::rename(&archive, &away).unwrap();
    std::fs::write(&archive, "no folder").unwrap();
    let error = store.commit(RUN, &layout(), &commit(1, [2.0; 3])).await.unwrap_err();
    assert!(matches!(error, StoreError::Blob(BlobError::Storage { remote: false, .. })), "{error}");
    std::fs::remove_file(&archive).unwrap();
    std::fs::rename(&away, &archive).unwrap();
    assert_eq!(store.load(RUN).await.unwrap().checkpoint, begin([1.0; 3]));
    assert_eq!(store.models(RUN).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_state_that_had_its_models_in_its_folder_takes_them_along() {
    let (place, objects) = (Place::in_sqlite(), of(&bucket(), "ours"));
    let done = noisy(1, [1.0, 2.0, 3.0]);
    {
        let store = place.open().await;
        submit(&store, RUN, &begin([0.0; 3])).await;
        store.commit(RUN, &layout(), &done).await.unwrap();
        store.close().await;
    }
    let store = lead(&place, &objects).await.unwrap();
    assert_eq!(store.load(RUN).await.unwrap().checkpoint, done.checkpoint);
    assert_eq!(std::fs::read_dir(place.path().join("blobs")).unwrap().count(), 0);
    assert_eq!(models_in(&objects).await.len(), 3);
}

#[tokio::test]
async fn servers_that_share_a_database_and_no_place_for_models_do_not_take_over() {
    let Some(place) = Place::in_postgres() else { return };
    let objects = of(&bucket(), "ours");
    let store = lead(&place, &objects).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    store.close().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let database = place.database("b");
    for other in [None, Some(of(&bucket(), "ours"))] {
        let error = Store::lead_with(elsewhere.path(), &database, other.as_ref()).await.unwrap_err();
        assert!(matches!(error, StoreError::Elsewhere { count: 1, .. }), "{error}");
    }
    // Whoever was refused has given the lease back.
    let led = Store::lead_with(elsewhere.path(), &database, Some(&objects)).await.unwrap();
    assert_eq!(led.load(RUN).await.unwrap().checkpoint, begin([0.0; 3]));
}

#[tokio::test]
async fn kept_noise_is_sealed_in_object_storage_and_its_key_is_in_the_row_alone() {
    let (place, objects) = (Place::in_sqlite(), of(&bucket(), "ours"));
    let store = lead(&place, &objects).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    let noise = objects.below("noise");
    let mut before = String::new();
    for round in 1..3u8 {
        let done = noisy(round.into(), [f32::from(round); 3]);
        store.commit(RUN, &layout(), &done).await.unwrap();
        let names = noise.list().await.unwrap();
        assert!(names.len() == 1 && names[0] != before, "{names:?}");
        before = names[0].clone();
        let sealed = noise.read(&before).await.unwrap().unwrap();
        assert!(!sealed.windows(8).any(|window| window == (-7i64).to_le_bytes()));
        assert_eq!(store.load(RUN).await.unwrap().checkpoint, done.checkpoint);
    }
    assert_eq!(std::fs::read_dir(place.path().join("secrets")).unwrap().count(), 0);
    // A backup has both, in its folder and in its rows, and goes on from them.
    let copy = place.path().join("copy");
    let looking = Store::look_with(place.path(), &place.database("b"), Some(&objects)).await.unwrap();
    looking.back_up(place.path(), &copy).await.unwrap();
    Store::bring_back(&copy, Some(0)).await.unwrap();
    let copied = Store::open(&copy).await.unwrap();
    assert_eq!(copied.load(RUN).await.unwrap().checkpoint, noisy(2, [2.0; 3]).checkpoint);
    copied.close().await;
    // And so does a bucket that it is brought to.
    let fresh = of(&bucket(), "ours");
    let moved = Store::lead_with(&copy, &super::super::Database::Sqlite, Some(&fresh)).await;
    assert!(moved.is_err(), "the copy is still locked");
    drop(copied);
    let moved = Store::lead_with(&copy, &super::super::Database::Sqlite, Some(&fresh)).await.unwrap();
    assert_eq!(moved.load(RUN).await.unwrap().checkpoint, noisy(2, [2.0; 3]).checkpoint);
    assert_eq!(models_in(&fresh).await.len(), models_in(&objects).await.len());
    // Bytes that were changed are no noise.
    noise.store.put(&noise.path(&before), vec![1; 80].into()).await.unwrap();
    assert!(store.load(RUN).await.unwrap_err().to_string().contains("damaged"));
}

#[test]
fn an_address_that_leads_nowhere_says_what_to_write_or_to_build() {
    let said = |url| Objects::at(url, "ours").unwrap_err().to_string();
    assert!(said("models").contains("s3://BUCKET/PREFIX"));
    assert!(said("file://relative").contains("file:///FOLDER"));
    assert!(cfg!(feature = "s3") || said("s3://bucket/models").contains("--features s3"));
    assert!(cfg!(feature = "azure") || said("az://container/models").contains("--features azure"));
}
