//! A model's file, there and back.

use safetensors::tensor::{Dtype, TensorView};

use super::*;

fn layout() -> Layout {
    // Not in the order of their names, in which the format writes them.
    let tensors = [("dense1.weight", vec![2, 2]), ("dense1.bias", vec![2]), ("a", vec![1])];
    Layout::new(tensors.map(|(name, shape)| (name.to_owned(), shape))).unwrap()
}

fn model() -> Parameters {
    Parameters::new((0u8..7).map(f32::from).collect())
}

fn refused(path: &Path, layout: &Layout) -> String {
    ModelFile::read(path).unwrap().fitted(layout).unwrap_err().to_string()
}

#[test]
fn a_model_comes_back_in_layout_order_with_its_standardiser_and_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let standardiser = Standardiser { mean: vec![0.1, -3.0], std: vec![1e-9, 2.0] };
    write_model(&path, &layout(), &model(), Some(&standardiser)).unwrap();
    let file = ModelFile::read(&path).unwrap();
    assert_eq!(file.fitted(&layout()).unwrap(), Held::Whole(model().into_values()));
    assert_eq!(file.standardiser(), Some(&standardiser));
    assert!(file.tells_order());
    let sha256 = model().sha256();
    assert_eq!(file.said_sha256(), Some(sha256.as_str()));
    assert_eq!((file.sha256(None).unwrap(), file.sha256(Some(&layout())).unwrap()), (sha256.clone(), sha256));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half written is left");
    let bytes = fs::read(&path).unwrap();
    write_model(&path, &layout(), &model(), Some(&standardiser)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes, "one model, one file");
}

#[test]
fn a_file_of_another_model_is_refused_with_the_tensor_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_model(&path, &layout(), &model(), None).unwrap();
    let other = |tensors: &[(&str, Vec<usize>)]| {
        Layout::new(tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone()))).unwrap()
    };
    let weight = ("dense1.weight", vec![2, 2]);
    let fewer = other(&[weight.clone(), ("dense1.bias", vec![2])]);
    assert!(refused(&path, &fewer).contains("the plan's model has no tensor `a`"));
    let more = other(&[weight.clone(), ("dense1.bias", vec![2]), ("a", vec![1]), ("b", vec![1])]);
    assert!(refused(&path, &more).contains("the plan's tensor `b` is not in it"));
    let turned = other(&[weight, ("dense1.bias", vec![1, 2]), ("a", vec![1])]);
    assert!(refused(&path, &turned).contains("`dense1.bias` has the shape [2] where the plan's has [1, 2]"));
}

#[test]
fn the_shared_part_and_the_whole_of_a_personal_model_are_told_apart_and_have_one_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let personal = layout().with_personal(&["dense1".into()]).unwrap();
    let shared = Parameters::new(vec![6.0]);
    let part = folder.path().join("part.safetensors");
    write_model(&part, &personal, &shared, None).unwrap();
    let file = ModelFile::read(&part).unwrap();
    assert_eq!(file.fitted(&personal).unwrap(), Held::Shared(vec![6.0]));
    let whole = folder.path().join("whole.safetensors");
    let tensors: Vec<&Tensor> = personal.tensors().iter().collect();
    let values = model().into_values();
    write_tensors(&whole, &tensors, &values, None, &Notes::new(), Existing::Kept).unwrap();
    let file = ModelFile::read(&whole).unwrap();
    assert_eq!(file.fitted(&personal).unwrap(), Held::Whole(values));
    for layout in [None, Some(&personal)] {
        assert_eq!(file.sha256(layout).unwrap(), shared.sha256());
    }
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let read = |path: &Path| ModelFile::read(path).unwrap_err().to_string();
    assert!(read(&path).contains("model.safetensors: "));
    fs::write(&path, b"not a model").unwrap();
    assert!(read(&path).contains("no model in the form of safetensors"));
    let half = TensorView::new(Dtype::F16, vec![1], &[0, 0]).unwrap();
    safetensors::serialize_to_file([("w", half)], None, &path).unwrap();
    assert!(read(&path).contains("tensor `w` is F16; the values of a model are F32"));
    let bytes = 1f64.to_le_bytes();
    let mean = TensorView::new(Dtype::F64, vec![1], &bytes).unwrap();
    safetensors::serialize_to_file([(SCALES[0], mean)], None, &path).unwrap();
    assert!(read(&path).contains("come together or not at all"));
    let value = 1f32.to_le_bytes();
    let tensor = TensorView::new(Dtype::F32, vec![1], &value).unwrap();
    let notes = [(LAYOUT.to_owned(), r#"["v"]"#.to_owned())].into_iter().collect();
    safetensors::serialize_to_file([("w", tensor)], Some(notes), &path).unwrap();
    assert!(read(&path).contains("lists other tensors than it has: v and w"));
}

#[test]
fn a_file_in_the_way_stays_unless_it_may_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::write(&path, "old").unwrap();
    let write = |existing| write_whole(&path, existing, |partial| fs::write(partial, "new"));
    assert_eq!(write(Existing::Kept).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    write(Existing::Replaced).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    let broken = write_whole(&path, Existing::Replaced, |partial| {
        fs::write(partial, "half")?;
        Err(io::Error::other("the disk is full"))
    });
    assert!(broken.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "what was half written is gone");
}
