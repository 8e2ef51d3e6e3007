//! IDX and NumPy arrays: what is read, what is refused and in which words; MNIST where it is at hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use learning::{Dataset, IdSource, Identified, Labels, SiteData, SourceSpec, View, load, load_with_ids};
use ndarray::{Array1, Array3, ShapeBuilder};
use ndarray_npy::{WritableElement, write_npy};
use protocol::{DataSpec, Decline, LearnError, Spec};
use tempfile::TempDir;

const IDX: &str = "idx = { train_images = 'x', train_labels = 'y' }";
const NUMPY: &str = "numpy = { train_x = 'x.npy', train_y = 'y.npy' }";

/// The bytes of an IDX file.
fn idx(kind: u8, dims: &[u32], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, u8::try_from(dims.len()).unwrap()];
    bytes.extend(dims.iter().flat_map(|side| side.to_be_bytes()));
    bytes.extend(body);
    bytes
}

fn plan(shape: &str, target: &str, divide_by: f64) -> DataSpec {
    let text = format!("[tensor]\nshape = {shape}\ntarget = {target}\ndivide_by = {divide_by:?}");
    toml::from_str(&text).unwrap()
}

/// Two samples of 1 x 2 x 3 bytes in two classes.
fn two() -> DataSpec {
    plan("[1, 2, 3]", "{ classes = 2 }", 2.0)
}

fn source(base: &Path, typed: &str) -> SourceSpec {
    toml::from_str::<SourceSpec>(typed).unwrap().resolved(base, &|_| None).unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn read_idx(samples: Vec<u8>, labels: Vec<u8>, spec: &DataSpec) -> Result<SiteData, LearnError> {
    let folder = folder(&[("x", samples), ("y", labels)]);
    load(&source(folder.path(), IDX), spec).map_err(|error| without_folder(error, &folder))
}

fn without_folder(error: LearnError, folder: &TempDir) -> LearnError {
    assert_eq!(error.reason, Decline::Data);
    LearnError::new(error.reason, error.message.replace(&format!("{}/", folder.path().display()), ""))
}

fn refusal(samples: Vec<u8>, labels: Vec<u8>) -> String {
    read_idx(samples, labels, &two()).unwrap_err().message
}

fn samples() -> Vec<u8> {
    idx(0x08, &[2, 2, 3], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255])
}

fn labels() -> Vec<u8> {
    idx(0x08, &[2], &[1, 0])
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// Three samples of 2 x 2 that count up, with classes 0, 1, 2, both of the same type.
fn read_numpy<X: WritableElement + From<u8>, Y: WritableElement + From<u8>>() -> SiteData {
    let folder = tempfile::tempdir().unwrap();
    let samples = Array3::from_shape_vec((3, 2, 2), (0u8..12).map(X::from).collect()).unwrap();
    write_npy(folder.path().join("x.npy"), &samples).unwrap();
    write_npy(folder.path().join("y.npy"), &Array1::from_iter((0u8..3).map(Y::from))).unwrap();
    load(&source(folder.path(), NUMPY), &plan("[4]", "{ classes = 3 }", 1.0)).unwrap()
}

#[test]
fn idx_bytes_are_divided_and_packed_files_read_like_plain_ones() {
    let plain = read_idx(samples(), labels(), &two()).unwrap().train.copied();
    assert_eq!(plain.shape, [1, 2, 3]);
    assert_eq!(plain.sample(1), [3.0, 3.5, 4.0, 4.5, 5.0, 127.5]);
    assert_eq!(plain.labels, Labels::Classes(vec![1, 0]));
    let folder = folder(&[("x.gz", packed(&samples())), ("y.gz", packed(&labels()))]);
    let typed =
        "idx = { train_images = 'x.gz', train_labels = 'y.gz', test_images = 'x.gz', test_labels = 'y.gz' }";
    let data = load(&source(folder.path(), typed), &two()).unwrap();
    assert_eq!(data.train.copied(), plain);
    assert_eq!(data.test.unwrap().copied(), plain);
}

#[test]
fn idx_integers_and_floats_are_big_endian() {
    let floats: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|value| value.to_be_bytes()).collect();
    let integers: Vec<u8> = [-7i32, 70_000].iter().flat_map(|value| value.to_be_bytes()).collect();
    let spec = plan("[1]", "'real'", 1.0);
    let data =
        read_idx(idx(0x0d, &[2, 1], &floats), idx(0x0c, &[2], &integers), &spec).unwrap().train.copied();
    assert_eq!((data.features.to_vec(), data.labels), (vec![0.5, -2.0], Labels::Real(vec![-7.0, 70_000.0])));
}

#[test]
fn an_idx_file_of_another_length_than_its_header_says_is_refused() {
    let mut short = samples();
    short.pop();
    let message = "`x` ends after 11 of the 12 bytes that its shape [2, 2, 3] needs; copy it again";
    assert_eq!(refusal(short, labels()), message);
    let mut long = samples();
    long.push(0);
    let message =
        "`x` goes on after the 12 bytes of its shape [2, 2, 3]; it is not the file its header describes";
    assert_eq!(refusal(long, labels()), message);
    let message = "`y` ends after 0 of the 2 bytes that its shape [2] needs; copy it again";
    assert_eq!(refusal(samples(), idx(0x08, &[2], &[])), message);
    let head = refusal(vec![0, 0, 8], labels());
    assert!(
        head.starts_with("cannot read `x`: ") && head.ends_with("damaged or cut short, copy it again"),
        "{head}"
    );
}

#[test]
fn a_header_that_lies_takes_no_memory() {
    // Four thousand million samples of six bytes: fits the plan's shape, and there are twelve bytes.
    let lie = refusal(idx(0x08, &[u32::MAX, 2, 3], &[0; 12]), labels());
    assert!(lie.starts_with("`x` ends after 12 of the 25769803770 bytes"), "{lie}");
    let huge = idx(0x0c, &[u32::MAX, u32::MAX, u32::MAX], &[]);
    let message = "`x` holds samples of shape [4294967295, 4294967295] where the plan's `data.tensor.shape` is [1, 2, 3]";
    assert_eq!(refusal(huge, labels()), message);
}

#[test]
fn a_file_that_is_not_idx_is_told_apart() {
    let message = "`x` is not in IDX format: it begins with [89, 50, 4e, 47] instead of 00 00, a type, and 1 to 8 dimensions";
    assert_eq!(refusal(b"\x89PNG....".to_vec(), labels()), message);
    let message =
        "`x` holds values of type 0e; save it as one of 08 (bytes), 0c (32-bit integers), 0d (32-bit floats)";
    assert_eq!(refusal(idx(0x0e, &[2, 2, 3], &[]), labels()), message);
}

#[test]
fn samples_and_labels_must_fit_the_plan_and_each_other() {
    let message = "`x` holds samples of shape [3, 2] where the plan's `data.tensor.shape` is [1, 2, 3]";
    assert_eq!(refusal(idx(0x08, &[2, 3, 2], &[0; 12]), labels()), message);
    let message = "`x` holds 2 samples but `y` 3 labels; they must be of the same records";
    assert_eq!(refusal(samples(), idx(0x08, &[3], &[0, 1, 0])), message);
    let message = "`y` has shape [2, 2] where one label a sample is needed";
    assert_eq!(refusal(samples(), idx(0x08, &[2, 2], &[0; 4])), message);
    let message = "`y` record 1: label 2 is not one of the plan's classes 0 to 1";
    assert_eq!(refusal(samples(), idx(0x08, &[2], &[1, 2])), message);
    let message = "`x` holds 0 records; at most 4294967295 and at least 1 can be used";
    assert_eq!(refusal(idx(0x08, &[0, 2, 3], &[]), idx(0x08, &[0], &[])), message);
    let nan: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|value| value.to_be_bytes()).collect();
    let error =
        read_idx(idx(0x0d, &[1, 2], &nan), idx(0x08, &[1], &[0]), &plan("[2]", "{ classes = 2 }", 1.0));
    let message =
        "`x` record 0: value 1 is NaN after division by 1; arrays cannot have missing values, clean the file";
    assert_eq!(error.unwrap_err().message, message);
    let table: SourceSpec = toml::from_str("csv = { train = 'a.csv' }").unwrap();
    let message =
        "the plan describes arrays (`data.tensor`) but this site's data is csv; give idx or numpy files";
    assert_eq!(load(&table, &two()).unwrap_err().message, message);
}

#[test]
fn numpy_arrays_of_every_supported_type_read_the_same() {
    let expected = read_numpy::<f32, u8>().train.copied();
    assert_eq!(expected.sample(1), [4.0, 5.0, 6.0, 7.0]);
    assert_eq!(expected.labels, Labels::Classes(vec![0, 1, 2]));
    for other in [
        read_numpy::<u8, i64>(),
        read_numpy::<i32, f32>(),
        read_numpy::<i64, f64>(),
        read_numpy::<f64, i32>(),
    ] {
        assert_eq!(other.train.copied(), expected);
    }
}

#[test]
fn numpy_files_that_cannot_be_used_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refusal = || {
        let error = load(&source(folder.path(), NUMPY), &two()).unwrap_err();
        without_folder(error, &folder).message
    };
    write_npy(at("y.npy"), &Array1::from_vec(vec![0u8, 1])).unwrap();
    write_npy(at("x.npy"), &Array3::<i16>::zeros((2, 2, 3))).unwrap();
    let message =
        "`x.npy` holds values of type '<i2'; save it as one of uint8, int32, int64, float32, float64";
    assert_eq!(refusal(), message);
    write_npy(at("x.npy"), &Array3::<u8>::zeros((2, 2, 3).f())).unwrap();
    let message =
        "`x.npy` is not in .npy format: it is in Fortran order; save it with `numpy.ascontiguousarray`";
    assert_eq!(refusal(), message);
    write_npy(at("x.npy"), &Array3::<f32>::zeros((2, 2, 3))).unwrap();
    let whole = fs::read(at("x.npy")).unwrap();
    fs::write(at("x.npy"), &whole[..whole.len() - 1]).unwrap();
    assert_eq!(
        refusal(),
        "`x.npy` ends after 47 of the 48 bytes that its shape [2, 2, 3] needs; copy it again"
    );
    fs::write(at("x.npy"), b"PK\x03\x04 not numpy").unwrap();
    assert!(refusal().starts_with("`x.npy` is not in .npy format: it is a ZIP archive, as .npz"));
    fs::remove_file(at("x.npy")).unwrap();
    assert!(refusal().starts_with("cannot open `x.npy`: "));
}

#[test]
fn ids_from_files_make_clients_in_the_order_of_their_numbers() {
    let whose: Vec<u8> = [10i32, 9, 10].iter().flat_map(|id| id.to_be_bytes()).collect();
    let others: Vec<u8> = [9i32, 8].iter().flat_map(|id| id.to_be_bytes()).collect();
    let files = [
        ("x", idx(0x08, &[3, 1], &[1, 2, 3])),
        ("y", idx(0x08, &[3], &[0, 1, 0])),
        ("w", idx(0x0c, &[3], &whose)),
        ("tx", idx(0x08, &[2, 1], &[4, 5])),
        ("ty", idx(0x08, &[2], &[0, 1])),
        ("tw", idx(0x0c, &[2], &others)),
    ];
    let folder = folder(&files);
    let typed = "idx = { train_images = 'x', train_labels = 'y', test_images = 'tx', test_labels = 'ty' }";
    let source = source(folder.path(), typed);
    let spec = plan("[1]", "{ classes = 2 }", 1.0);
    let with = |ids: &str| -> Result<Identified, LearnError> {
        let ids = toml::from_str::<IdSource>(ids).unwrap().resolved(folder.path(), &|_| None).unwrap();
        load_with_ids(&source, &spec, &ids).map_err(|error| without_folder(error, &folder))
    };
    let clients = with("files = { train = 'w', test = 'tw' }").unwrap().clients();
    let held = |client: &learning::NaturalClient| {
        (
            client.id.clone(),
            client.data.train.copied().features.to_vec(),
            client.data.test.as_ref().map(|test| test.copied().features.to_vec()),
        )
    };
    let expected = [("9".to_owned(), vec![2.0], Some(vec![4.0])), ("10".to_owned(), vec![1.0, 3.0], None)];
    assert_eq!(clients.iter().map(held).collect::<Vec<_>>(), expected);
    let without = with("files = { train = 'w' }").unwrap();
    assert!(without.test.is_some() && without.clients().iter().all(|client| client.data.test.is_none()));
    let message = "`x` holds 3 samples but `tw` 2 ids; they must be of the same records";
    assert_eq!(with("files = { train = 'tw' }").unwrap_err().message, message);
    let message = "arrays have no columns; take their ids from files, `files = { train = \"...\" }`";
    assert_eq!(with("column = 'w'").unwrap_err().message, message);
}

#[test]
fn mnist_has_sixty_thousand_images_by_539_writers() {
    let Some(data) = std::env::var("CONSORTIA_DATA").ok() else {
        eprintln!("skipped: CONSORTIA_DATA is not set");
        return;
    };
    let lookup = |name: &str| (name == "CONSORTIA_DATA").then(|| data.clone());
    let typed = "[idx]
        train_images = '${CONSORTIA_DATA}/mnist/train-images-idx3-ubyte.gz'
        train_labels = '${CONSORTIA_DATA}/mnist/train-labels-idx1-ubyte.gz'
        test_images = '${CONSORTIA_DATA}/mnist/t10k-images-idx3-ubyte.gz'
        test_labels = '${CONSORTIA_DATA}/mnist/t10k-labels-idx1-ubyte.gz'";
    let source = toml::from_str::<SourceSpec>(typed).unwrap().resolved(Path::new("."), &lookup).unwrap();
    let ids = "[files]
        train = '${CONSORTIA_DATA}/mnist/train-writers-idx1-int.gz'
        test = '${CONSORTIA_DATA}/mnist/t10k-writers-idx1-int.gz'";
    let ids = toml::from_str::<IdSource>(ids).unwrap().resolved(Path::new("."), &lookup).unwrap();
    let mnist = load_with_ids(&source, &plan("[1, 28, 28]", "{ classes = 10 }", 255.0), &ids).unwrap();
    assert_eq!((mnist.train.len(), mnist.test.as_ref().unwrap().len()), (60_000, 10_000));
    assert!(mnist.train.features.to_vec().iter().all(|value| (0.0..=1.0).contains(value)));
    let clients = mnist.clients();
    assert_eq!(clients.len(), 539);
    assert_eq!(clients.iter().map(|client| client.data.train.len()).sum::<usize>(), 60_000);
    assert!(clients.iter().all(|client| client.data.test.is_none()), "the test images are by other writers");
}

#[test]
fn a_symbol_that_the_embedding_does_not_know_is_named() {
    let spec = r#"{"model": {"layers": [{"embedding": {"symbols": 3, "width": 2}}, "average_pool"]},
        "data": {"tensor": {"shape": [2], "target": {"classes": 2}}},
        "training": {"batch_size": 2, "optimizer": {"sgd": {"learning_rate": 0.1}}}, "cohort_max": 1}"#;
    let spec = Spec::from_json(spec).unwrap();
    let prepared = |features: Vec<f32>| {
        let labels = Labels::Classes(vec![0; features.len() / 2]);
        let train = View::whole(Dataset { shape: vec![2], features: features.into(), labels }.into());
        SiteData { train, test: None }.prepared(&spec, None).map_err(|error| error.message)
    };
    assert!(prepared(vec![0.0, 2.0, 1.0, 1.0]).is_ok());
    for unknown in [3.0, -1.0, 0.5] {
        let refused = prepared(vec![0.0, 2.0, 1.0, unknown]).unwrap_err();
        let begins = format!(
            "training row 1 has {unknown} in place 1, and the model's embedding has the symbols 0 to 2;"
        );
        assert!(refused.starts_with(&begins), "{refused}");
    }
}
