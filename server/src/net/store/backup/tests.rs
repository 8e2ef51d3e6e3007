//! A copy is the state it was taken of, and an old state does not spend again what it has forgotten.

use std::path::Path;

use super::super::place::Place;
use super::super::tests::{RUN, a_book, begin, commit, layout, submit};
use super::*;
use privacy::accounting::{Mechanism, Relation};
use privacy::ledger::{Charge, Composition, Release, ReserveError, Terms, Unit};

#[tokio::test]
async fn a_copy_of_a_state_in_use_goes_on_where_the_state_was() {
    let dir = tempfile::tempdir().unwrap();
    let (state, copy) = (dir.path().join("state"), dir.path().join("copy"));
    let store = Store::open(&state).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    store.commit(RUN, &layout(), &commit(1, [1.0, 2.0, 3.0])).await.unwrap();
    let looking = Store::look(&state).await.unwrap();
    looking.back_up(&state, &copy).await.unwrap();
    looking.close().await;
    store.commit(RUN, &layout(), &commit(2, [9.0; 3])).await.unwrap();
    // Nobody works with it before it is charged, however it came to where it is.
    let refused = Store::open(&copy).await.unwrap_err();
    assert!(matches!(refused, StoreError::Backup(_)), "{refused}");
    assert!(refused.to_string().contains("server restore BACKUP --to NEW --lost-releases"), "{refused}");
    Store::bring_back(&copy, Some(0)).await.unwrap();
    let copied = Store::open(&copy).await.unwrap();
    assert_eq!(copied.load(RUN).await.unwrap().checkpoint, commit(1, [1.0, 2.0, 3.0]).checkpoint);
    assert!(copied.models(RUN).await.unwrap().iter().all(|model| Path::new(&model.place).exists()));
}

#[tokio::test]
async fn nothing_is_removed_while_a_copy_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let store = Store::open(&state).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap();
    let looking = Store::look(&state).await.unwrap();
    let under_way = looking.copying.begin().await.unwrap();
    let before = store.blobs.list().await.unwrap();
    store.commit(RUN, &layout(), &commit(2, [2.0; 3])).await.unwrap();
    assert!(store.blobs.list().await.unwrap().is_superset(&before));
    drop(under_way);
    store.commit(RUN, &layout(), &commit(3, [3.0; 3])).await.unwrap();
    let after = store.blobs.list().await.unwrap();
    assert!(!after.is_superset(&before), "{before:?} {after:?}");
    // A copy waits for a sweep that has begun.
    let sweeping = store.copying.is_over().unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(50), looking.copying.begin()).await;
    assert!(sweeping.is_some() && waits.is_err());
}

#[tokio::test]
async fn a_copy_of_a_state_in_postgresql_is_a_state_in_sqlite() {
    let Some(place) = Place::in_postgres() else { return };
    let store = place.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let mut done = commit(1, [1.0, 2.0, 3.0]);
    done.checkpoint.noise = privacy::correlation::NoiseMemory::new(vec![vec![1, -2, 3]]);
    store.commit(RUN, &layout(), &done).await.unwrap();
    let (ledger, links) = a_book();
    store
        .append_to_ledger(&LedgerReservation {
            population: ledger.terms().population.clone(),
            links: links.clone(),
        })
        .await
        .unwrap();
    let looking = Store::look_into(place.path(), &place.database("b")).await.unwrap();
    let copy = place.path().join("copy");
    looking.back_up(place.path(), &copy).await.unwrap();
    store.commit(RUN, &layout(), &commit(2, [9.0; 3])).await.unwrap();
    assert!(matches!(Store::open(&copy).await, Err(StoreError::Backup(_))));
    Store::bring_back(&copy, Some(0)).await.unwrap();
    let copied = Store::open(&copy).await.unwrap();
    assert_eq!(copied.load(RUN).await.unwrap().checkpoint, done.checkpoint);
    // A reservation of which nothing came is given back.
    let brought = copied.ledger(&ledger.terms().population).await.unwrap();
    assert_eq!(brought[..links.len()], links);
    assert!(brought[links.len()..].iter().all(|link| link.record.get().starts_with("{\"cancelled\"")));
    // It can go on there, and its files are swept like any.
    copied.commit(RUN, &layout(), &commit(2, [4.0; 3])).await.unwrap();
    assert!(copied.models(RUN).await.unwrap().iter().all(|model| Path::new(&model.place).exists()));
}

#[tokio::test]
async fn a_damaged_file_is_not_copied_but_named() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let store = Store::open(&state).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    let (file, _) = store.model_place(RUN).await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = store.back_up(&state, &dir.path().join("copy")).await.unwrap_err().to_string();
    assert!(error.contains(&file), "{error}");
}

#[tokio::test]
async fn a_missing_file_is_named_by_whoever_copies_the_state_and_whoever_verifies_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let store = Store::open(&state).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    let mut done = commit(1, [1.0, 2.0, 3.0]);
    done.checkpoint.noise = privacy::correlation::NoiseMemory::new(vec![vec![1, -2, 3]]);
    store.commit(RUN, &layout(), &done).await.unwrap();
    store.check_files().await.unwrap();
    let models = store.models(RUN).await.unwrap();
    let noise = std::fs::read_dir(state.join("secrets")).unwrap().next().unwrap().unwrap().path();
    let files = models.iter().map(|model| Path::new(&model.place).to_owned()).chain([noise]);
    for (number, file) in files.enumerate() {
        let kept = std::fs::read(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let mut flipped = kept.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damage in [None, Some(flipped)] {
            match &damage {
                None => std::fs::remove_file(&file).unwrap(),
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            }
            let verified = store.check_files().await.unwrap_err().to_string();
            assert!(
                verified.starts_with("1 file is missing or damaged") && verified.contains(name),
                "{verified}"
            );
            let copy = dir.path().join(format!("copy-{number}-{}", damage.is_some()));
            let copied = store.back_up(&state, &copy).await.unwrap_err().to_string();
            assert!(copied.contains(name), "{copied}");
        }
        std::fs::write(&file, kept).unwrap();
    }
    store.check_files().await.unwrap();
}

#[tokio::test]
async fn a_state_that_another_folder_goes_on_from_starts_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let (state, new) = (dir.path().join("state"), dir.path().join("new"));
    let store = Store::open(&state).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    store.close().await;
    drop(store);
    Store::hand_over(&state, &new).unwrap();
    let refused = Store::open(&state).await.unwrap_err().to_string();
    assert!(refused.contains(new.to_str().unwrap()) && refused.contains("handed-over"), "{refused}");
    // It can be looked into, and handed over again as long as nothing goes on from it.
    Store::look(&state).await.unwrap().close().await;
    Store::hand_over(&state, &dir.path().join("other")).unwrap();
    std::fs::create_dir(dir.path().join("other")).unwrap();
    Store::hand_over(&state, &dir.path().join("other")).unwrap();
    let twice = Store::hand_over(&state, &new).unwrap_err().to_string();
    assert!(twice.contains("other"), "{twice}");
}

#[tokio::test]
async fn releases_that_a_state_does_not_know_of_are_charged_even_where_the_budget_cannot_pay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let (ledger, links) = a_book();
    let population = ledger.terms().population.clone();
    store.append_to_ledger(&LedgerReservation { population: population.clone(), links }).await.unwrap();
    let lost = store.charge_lost(3).await.unwrap();
    assert_eq!((lost.len(), lost[0].charged, &lost[0].population), (1, 3, &population));
    let after = Ledger::replay(&store.ledger(&population).await.unwrap()).unwrap();
    assert_eq!((after.releases(), after.open_reservations().len()), (3, 0));
    assert!((after.epsilon().unwrap().best() - lost[0].epsilon).abs() < 1e-12);
    // Noise 4 and epsilon 5 pay for a few dozen releases, not for a thousand; they were made all the same.
    let rest = store.charge_lost(1000).await.unwrap();
    assert!(rest[0].charged == 1000 && rest[0].epsilon > rest[0].epsilon_max, "{rest:?}");
    let mut ledger = Ledger::replay(&store.ledger(&population).await.unwrap()).unwrap();
    assert_eq!(ledger.releases(), 1003);
    let mechanism = Mechanism::Gaussian { noise_multiplier: 4.0 };
    let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
    assert!(matches!(ledger.reserve("r", 1, &charge, 1), Err(ReserveError::Exhausted { .. })));
}

#[tokio::test]
async fn lost_releases_are_charged_as_what_costs_most_and_not_as_what_has_least_noise() {
    let sampled = Mechanism::PoissonGaussian { noise_multiplier: 1.0, sampling_rate: 0.01 };
    let whole = Mechanism::Gaussian { noise_multiplier: 1.1 };
    for order in [[sampled, whole], [whole, sampled]] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let terms = Terms {
            population: "wards".into(),
            unit: Unit::Client,
            relation: Relation::AddOrRemoveOne,
            delta: 1e-5,
            epsilon_max: 50.0,
        };
        let (mut ledger, first) = Ledger::found(terms).unwrap();
        let mut links = vec![first];
        for (round, mechanism) in (1..).zip(order) {
            let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
            let (permit, reserved) = ledger.reserve("r", round, &charge, 1).unwrap();
            links.extend([reserved, ledger.spend(permit, Release::default()).unwrap().1]);
        }
        store.append_to_ledger(&LedgerReservation { population: "wards".into(), links }).await.unwrap();
        let mut honest = ledger.clone();
        let charge = Charge { mechanism: whole, composition: Composition::Each { at_most: None } };
        honest.book_made("lost", &charge, 3).unwrap();
        let (lost, due) = (store.charge_lost(3).await.unwrap(), honest.epsilon().unwrap().best());
        assert!(lost[0].epsilon >= due - 1e-12, "{} is less than {due}", lost[0].epsilon);
    }
}

#[tokio::test]
async fn a_population_that_a_backup_does_not_know_begins_with_the_lost_releases_charged() {
    let dir = tempfile::tempdir().unwrap();
    let (state, back) = (dir.path().join("state"), dir.path().join("back"));
    let store = Store::open(&state).await.unwrap();
    // A population that was founded and has charged nothing is as good as unknown.
    let terms = |population: &str| Terms {
        population: population.into(),
        unit: Unit::Client,
        relation: Relation::AddOrRemoveOne,
        delta: 1e-5,
        epsilon_max: 3.0,
    };
    let charge = Charge {
        mechanism: Mechanism::Gaussian { noise_multiplier: 4.0 },
        composition: Composition::Each { at_most: Some(1) },
    };
    assert_eq!(store.open_ledger(terms("bare"), &charge).await.unwrap().charged, 0);
    let looking = Store::look(&state).await.unwrap();
    looking.back_up(&state, &back).await.unwrap();
    looking.close().await;
    let asked = Store::bring_back(&back, None).await.unwrap_err();
    assert!(asked.to_string().contains("--lost-releases"), "{asked}");
    let brought = Store::bring_back(&back, Some(4)).await.unwrap();
    assert_eq!((brought.charged[0].charged, brought.owed), (0, 4));
    for population in ["bare", "wards"] {
        // However often a server has started in between, and however often it is asked.
        for charged in [4, 0] {
            let store = Store::open(&back).await.unwrap();
            let opened = store.open_ledger(terms(population), &charge).await.unwrap();
            assert_eq!((opened.charged, opened.ledger.releases()), (charged, 4), "{population}");
            let reserved = Ledger::replay(&store.ledger(population).await.unwrap()).unwrap();
            assert_eq!((reserved.releases(), reserved.head()), (4, opened.ledger.head()));
            store.close().await;
        }
    }
    // A limit of participations holds within a run, and the lost releases may be of many.
    let store = Store::open(&back).await.unwrap();
    let mut honest = Ledger::found(terms("wards")).unwrap().0;
    let each = Charge { composition: Composition::Each { at_most: None }, ..charge.clone() };
    honest.book_made("lost", &each, 4).unwrap();
    let reserved = Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap();
    assert!(reserved.epsilon().unwrap().best() >= honest.epsilon().unwrap().best() - 1e-12);
    store.close().await;
    drop(store);
    // Restored once more: what has been charged pays for the new losses only, what is still unknown for all of them.
    let brought = Store::bring_back(&back, Some(1000)).await.unwrap();
    let charged: Vec<u64> = brought.charged.iter().map(|one| one.charged).collect();
    assert_eq!((charged, brought.owed), (vec![1000, 1000], 1004));
    let store = Store::open(&back).await.unwrap();
    let mut ledger = store.open_ledger(terms("children"), &charge).await.unwrap().ledger;
    assert_eq!(ledger.releases(), 1004);
    assert!(matches!(ledger.reserve("r", 1, &charge, 1), Err(ReserveError::Exhausted { .. })));
}
