//! Records in memory, and the rows of them that one client holds.
//!
//! A data set is plain numbers in row order; it knows nothing of files or columns.

use std::sync::Arc;

use super::features::Features;

/// Records in memory, row by row. Numeric cells that are missing are NaN until prepared.
#[derive(Clone, PartialEq)]
pub struct Dataset {
    /// Shape of one sample, such as `[13]` or `[1, 28, 28]`; each side above 0.
    pub shape: Vec<usize>,
    /// The samples one after another: `rows * product(shape)` values.
    pub features: Features,
    /// One label a row.
    pub labels: Labels,
}

/// What is to be predicted, one a row.
#[derive(Clone, PartialEq)]
pub enum Labels {
    /// Classes from 0 to the plan's `classes - 1`.
    Classes(Vec<u32>),
    /// Real numbers, finite.
    Real(Vec<f32>),
}

impl Labels {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.len(),
            Self::Real(values) => values.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        match self {
            Self::Classes(classes) => classes.truncate(count),
            Self::Real(values) => values.truncate(count),
        }
    }

    /// The labels of `rows`, in their order.
    ///
    /// # Panics
    /// When a row does not exist.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        match self {
            Self::Classes(classes) => Self::Classes(rows.iter().map(|row| classes[*row as usize]).collect()),
            Self::Real(values) => Self::Real(rows.iter().map(|row| values[*row as usize]).collect()),
        }
    }
}

impl Dataset {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values of one sample.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values of one row, in new memory.
    ///
    /// # Panics
    /// When the row does not exist.
    pub fn sample(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.width()];
        self.copy_sample_into(row, &mut values);
        values
    }

    /// Writes the values of one row into `target`, which is as long as a sample.
    ///
    /// # Panics
    /// When the row does not exist or `target` has another length.
    pub(crate) fn copy_sample_into(&self, row: usize, target: &mut [f32]) {
        assert_eq!(target.len(), self.width(), "a sample needs memory of its own length");
        self.features.copy_into(row * target.len(), target);
    }

    /// [`Dataset::copy_sample_into`] without rounding to f32.
    ///
    /// # Panics
    /// As it.
    pub(crate) fn copy_wide_sample_into(&self, row: usize, target: &mut [f64]) {
        assert_eq!(target.len(), self.width(), "a sample needs memory of its own length");
        self.features.copy_wide_into(row * target.len(), target);
    }

    /// A copy of `rows`, in their order; a row may be named twice.
    ///
    /// # Panics
    /// When a row does not exist.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let features = self.features.select(rows, self.width());
        Self { shape: self.shape.clone(), features, labels: self.labels.select(rows) }
    }
}

/// Only sizes: records of people do not belong into logs.
impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dataset({} rows of {:?})", self.len(), self.shape)
    }
}

/// Only sizes: records of people do not belong into logs.
impl std::fmt::Debug for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Self::Classes(_) => "Classes",
            Self::Real(_) => "Real",
        };
        write!(f, "{kind}({} rows)", self.len())
    }
}

/// Rows of a shared data set: what one (virtual) client holds.
#[derive(Clone)]
pub struct View {
    /// The records.
    pub dataset: Arc<Dataset>,
    /// Which of them, in order.
    pub rows: Arc<[u32]>,
}

impl View {
    /// All rows of a data set.
    ///
    /// # Panics
    /// When it has more than `u32::MAX` rows; readers refuse such files.
    pub fn whole(dataset: Arc<Dataset>) -> Self {
        let count = u32::try_from(dataset.len()).expect("readers refuse more rows than u32 can count");
        Self { dataset, rows: (0..count).collect() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes the values of the row at `place` among those it holds into `target`, which is as long as a sample.
    ///
    /// # Panics
    /// When it does not hold so many rows or `target` has another length.
    pub(crate) fn copy_sample_into(&self, place: usize, target: &mut [f32]) {
        self.dataset.copy_sample_into(self.rows[place] as usize, target);
    }

    /// The labels at `places` among the rows it holds, in their order.
    ///
    /// # Panics
    /// When it does not hold so many rows.
    #[must_use]
    pub(crate) fn labels_at(&self, places: &[u32]) -> Labels {
        let row = |place: &u32| self.rows[*place as usize] as usize;
        match &self.dataset.labels {
            Labels::Classes(classes) => {
                Labels::Classes(places.iter().map(|place| classes[row(place)]).collect())
            }
            Labels::Real(values) => Labels::Real(places.iter().map(|place| values[row(place)]).collect()),
        }
    }

    /// A copy of the rows it holds.
    pub fn copied(&self) -> Dataset {
        self.dataset.select(&self.rows)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} of {:?})", self.rows.len(), self.dataset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Dataset {
        let features: Vec<f32> = (0u8..6).map(f32::from).collect();
        Dataset { shape: vec![2], features: features.into(), labels: Labels::Classes(vec![0, 1, 2]) }
    }

    #[test]
    fn selected_rows_come_in_the_order_asked_for() {
        let two = three().select(&[2, 0]);
        assert_eq!(two.features, [4.0, 5.0, 0.0, 1.0]);
        assert_eq!(two.labels, Labels::Classes(vec![2, 0]));
        assert_eq!((two.len(), two.sample(1)), (2, vec![0.0, 1.0]));
    }

    #[test]
    fn a_view_counts_its_own_rows() {
        let view = View { dataset: Arc::new(three()), rows: [2, 0].into() };
        let mut sample = [0.0; 2];
        view.copy_sample_into(1, &mut sample);
        assert_eq!((sample, view.labels_at(&[1, 0, 0])), ([0.0, 1.0], Labels::Classes(vec![0, 2, 2])));
    }

    #[test]
    fn a_whole_view_copies_everything_and_shows_nothing() {
        let view = View::whole(Arc::new(three()));
        assert_eq!(view.copied(), three());
        assert_eq!(format!("{view:?}"), "View(3 of Dataset(3 rows of [2]))");
        assert_eq!(format!("{:?}", Labels::Real(vec![0.5])), "Real(1 rows)");
    }
}
