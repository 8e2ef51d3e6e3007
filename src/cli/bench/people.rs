//! Who takes part in a workload: virtual clients with MNIST's images, or with made-up ones of the same shape.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use learning::device::Device;
use learning::{IdxSource, Partition, SiteData, SourceSpec, View, load, partition};
use protocol::{ClientId, Positive, Purpose, Round, Seed, Spec};
use simulations::{Population, SyntheticSource};

use super::workload::Workload;
use crate::cli::failure::{Failure, Kind, OrFail};

/// Test images where images are made up.
const TESTS: usize = 2000;

/// Where images come from.
#[derive(Clone, Debug)]
pub(super) enum Images {
    /// The four files of MNIST, in this folder.
    Mnist(PathBuf),
    /// Made up.
    Synthetic,
}

impl Images {
    /// The folder `mnist` of `data`, if one is given; else made-up ones.
    pub(super) fn find(data: Option<&Path>) -> Result<Self, Failure> {
        let Some(data) = data else { return Ok(Self::Synthetic) };
        let folder = data.join("mnist");
        if folder.is_dir() {
            return Ok(Self::Mnist(folder));
        }
        let message = format!(
            "--data: there is no folder {}; leave --data and CONSORTIA_DATA out for made-up images",
            folder.display()
        );
        Err(Failure::new(Kind::Configuration, message))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Mnist(_) => "mnist",
            Self::Synthetic => "synthetic",
        }
    }

    /// All training and test images; at least `rows` to train on.
    fn read(&self, spec: &Spec, rows: usize, seed: Seed) -> Result<SiteData, Failure> {
        match self {
            Self::Mnist(folder) => {
                let file = |name: &str| folder.join(name);
                let source = SourceSpec::Idx(IdxSource {
                    train_images: file("train-images-idx3-ubyte.gz"),
                    train_labels: file("train-labels-idx1-ubyte.gz"),
                    test_images: Some(file("t10k-images-idx3-ubyte.gz")),
                    test_labels: Some(file("t10k-labels-idx1-ubyte.gz")),
                });
                load(&source, &spec.data).or_fail(Kind::Configuration, "--data")
            }
            Self::Synthetic => {
                let spread = Positive::new(0.5).or_fail(Kind::Defect, "spread")?;
                let source = SyntheticSource { rows, test_rows: TESTS, spread };
                let (train, test) = source.make(&spec.input_shape(), spec.target(), seed);
                let whole = |dataset| View::whole(Arc::new(dataset));
                Ok(SiteData { train: whole(train), test: Some(whole(test)) })
            }
        }
    }

    /// The clients of a workload with `records` images each, dealt at random, and a server with the test images.
    pub(super) fn population(
        &self,
        workload: Workload,
        records: usize,
        spec: &Spec,
        seed: u64,
    ) -> Result<Population, Failure> {
        let seed = Seed::from_number(seed).derive(Purpose::Partition, Round(0), None);
        let rows = workload.clients() * records;
        let all = self.read(spec, rows, seed)?;
        if all.train.len() < rows {
            let message = format!("{} images are too few for {rows}; lower --records", all.train.len());
            return Err(Failure::new(Kind::Configuration, message));
        }
        let taken = all.train.dataset.labels.select(&all.train.rows[..rows]);
        let parts = partition(&taken, &Partition::Iid, workload.clients(), seed)
            .or_fail(Kind::Configuration, "--records")?;
        let mut sites = Vec::with_capacity(parts.len());
        for (number, part) in (1..).zip(parts) {
            let name = ClientId::new(&format!("client-{number:04}")).or_fail(Kind::Defect, "client")?;
            let train = View { dataset: Arc::clone(&all.train.dataset), rows: part.into() };
            sites.push((name, SiteData { train, test: None }));
        }
        let train = View { dataset: all.train.dataset, rows: Arc::new([]) };
        Ok(Population::of(sites, Some(SiteData { train, test: all.test }), Device::Cpu))
    }
}
