//! Named and typed blocks of values: what a task carries to a site, and what an answer carries back.
//!
//! The names, types and lengths of an answer's blocks are compared with what its task [expects](PayloadSpec) before memory is taken for
//! them. The values themselves are for whoever folds them to judge.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{IdError, Metrics, Rejection, UpdateCodec, VALUES_MAX, is_plain_name};

/// The most blocks of one task or answer.
pub const BLOCKS_MAX: usize = 16;

/// The most bytes of values in one answer: as many as the largest update has.
pub const ANSWER_BYTES_MAX: u64 = VALUES_MAX * 4;

/// The name of a method, of its work, or of a block: 1 to 64 of `a-z A-Z 0-9 . _ -`, the first neither `.` nor `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Cow<'static, str>);

impl Name {
    /// A name that stands in the program.
    ///
    /// # Panics
    /// When it is empty or longer than 64 bytes; the other rules are not checked here.
    pub const fn literal(name: &'static str) -> Self {
        assert!(!name.is_empty() && name.len() <= 64, "a name has 1 to 64 characters");
        Self(Cow::Borrowed(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, where it stands in the program.
    pub fn as_literal(&self) -> Option<&'static str> {
        match self.0 {
            Cow::Borrowed(name) => Some(name),
            Cow::Owned(_) => None,
        }
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(name: String) -> Result<Self, IdError> {
        if is_plain_name(&name) {
            Ok(Self(name.into()))
        } else {
            Err(IdError::Name(name.chars().take(80).collect()))
        }
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(name: &str) -> Result<Self, IdError> {
        name.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The type of a block's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DType {
    /// Points of a lattice.
    I32,
    /// Words of exact sums.
    I64,
    /// Elements of the ring of integers modulo 2^32.
    U32,
    /// Elements of the ring of integers modulo 2^64.
    U64,
    /// Parameters.
    F32,
    /// Coefficients of small models.
    F64,
    /// Bytes.
    U8,
}

impl DType {
    /// Bytes of one value.
    pub fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// A block's values.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub enum Values {
    /// See [`DType::I32`].
    I32(Vec<i32>),
    /// See [`DType::I64`].
    I64(Vec<i64>),
    /// See [`DType::U32`].
    U32(Vec<u32>),
    /// See [`DType::U64`].
    U64(Vec<u64>),
    /// See [`DType::F32`].
    F32(Vec<f32>),
    /// See [`DType::F64`].
    F64(Vec<f64>),
    /// See [`DType::U8`].
    U8(Vec<u8>),
}

impl Values {
    /// Their type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::I32(_) => DType::I32,
            Self::I64(_) => DType::I64,
            Self::U32(_) => DType::U32,
            Self::U64(_) => DType::U64,
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::U8(_) => DType::U8,
        }
    }

    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values of this type from little-endian bytes; `None` when the last of them is cut off.
    pub fn from_le_bytes(dtype: DType, bytes: &[u8]) -> Option<Self> {
        fn read<T, const N: usize>(bytes: &[u8], value: fn([u8; N]) -> T) -> Option<Vec<T>> {
            let (values, rest) = bytes.as_chunks::<N>();
            rest.is_empty().then(|| values.iter().map(|bytes| value(*bytes)).collect())
        }
        Some(match dtype {
            DType::I32 => Self::I32(read(bytes, i32::from_le_bytes)?),
            DType::I64 => Self::I64(read(bytes, i64::from_le_bytes)?),
            DType::U32 => Self::U32(read(bytes, u32::from_le_bytes)?),
            DType::U64 => Self::U64(read(bytes, u64::from_le_bytes)?),
            DType::F32 => Self::F32(read(bytes, f32::from_le_bytes)?),
            DType::F64 => Self::F64(read(bytes, f64::from_le_bytes)?),
            DType::U8 => Self::U8(bytes.to_vec()),
        })
    }

    /// The values as little-endian bytes.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Self::I32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::I64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U8(values) => values.clone(),
        }
    }
}

/// Values and what they are called.
#[derive(Clone, PartialEq)]
pub struct Block {
    /// The name, by which its task's method knows it.
    pub name: Name,
    /// The values.
    pub values: Values,
}

impl Block {
    /// A block.
    pub fn new(name: Name, values: Values) -> Self {
        Self { name, values }
    }

    /// What is said of it before it comes.
    pub fn head(&self) -> BlockHead {
        let (dtype, len) = (self.values.dtype(), self.values.len() as u64);
        BlockHead { name: self.name.clone(), dtype, len }
    }
}

/// Only what a head says: what it holds may be one site's.
impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {:?})", self.name, self.values.len(), self.values.dtype())
    }
}

/// A block as its message announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockHead {
    /// The name.
    pub name: Name,
    /// The type of its values.
    pub dtype: DType,
    /// Their number.
    pub len: u64,
}

impl BlockHead {
    /// Bytes that follow; `None` when no machine could hold them.
    pub fn bytes(&self) -> Option<u64> {
        self.len.checked_mul(self.dtype.width() as u64)
    }
}

/// How many values a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// This many.
    Exactly(usize),
    /// This many or fewer.
    AtMost(usize),
}

/// What a block must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpec {
    /// Its name.
    pub name: Name,
    /// The type of its values.
    pub dtype: DType,
    /// How many there are.
    pub length: Length,
}

/// What an answer to a task must carry, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct PayloadSpec {
    /// The blocks.
    pub blocks: Vec<BlockSpec>,
    /// How the block [`UPDATE`] may be shortened on its way.
    pub codec: UpdateCodec,
}

/// The block of a training's answer: the update on the lattice, one point a shared parameter in layout order.
pub const UPDATE: Name = Name::literal("update");
/// The block of named sums: the words of each sum, in the order of the names.
pub const SUMS: Name = Name::literal("sums");

impl PayloadSpec {
    /// No block, as for an evaluation, whose answer is metrics alone.
    pub fn none() -> Self {
        Self { blocks: Vec::new(), codec: UpdateCodec::Exact }
    }

    /// One block of exactly this many values.
    pub fn one(name: Name, dtype: DType, len: usize) -> Self {
        Self {
            blocks: vec![BlockSpec { name, dtype, length: Length::Exactly(len) }],
            codec: UpdateCodec::Exact,
        }
    }

    /// An update of `dimension` shared parameters that may travel in the short form of `codec`.
    pub fn update(dimension: usize, codec: UpdateCodec) -> Self {
        Self { codec, ..Self::one(UPDATE, DType::I32, dimension) }
    }

    /// Bytes of all its values, at most; `None` when no machine could hold them.
    pub fn bytes_max(&self) -> Option<u64> {
        let bytes = |block: &BlockSpec| {
            let (Length::Exactly(most) | Length::AtMost(most)) = block.length;
            (most as u64).checked_mul(block.dtype.width() as u64)
        };
        self.blocks.iter().try_fold(0u64, |sum, block| sum.checked_add(bytes(block)?))
    }

    /// Compares what is announced with what is expected.
    ///
    /// # Errors
    /// [`Rejection::WrongKind`] for other blocks, [`Rejection::Oversize`] for too many values, [`Rejection::WrongShape`] for too few.
    pub fn check(&self, heads: &[BlockHead]) -> Result<(), Rejection> {
        let same =
            |(head, spec): (&BlockHead, &BlockSpec)| head.name == spec.name && head.dtype == spec.dtype;
        if heads.len() != self.blocks.len() || !heads.iter().zip(&self.blocks).all(same) {
            return Err(Rejection::WrongKind);
        }
        for (head, spec) in heads.iter().zip(&self.blocks) {
            let (Length::Exactly(most) | Length::AtMost(most)) = spec.length;
            if head.len > most as u64 {
                return Err(Rejection::Oversize);
            }
            if matches!(spec.length, Length::Exactly(_)) && head.len < most as u64 {
                return Err(Rejection::WrongShape);
            }
        }
        Ok(())
    }
}

/// What a site hands in for a task that it has done. Nothing in it is trusted: a server checks every number again.
#[derive(Clone, PartialEq)]
pub struct Contribution {
    /// By how much it counts in a mean: 1 where nothing is weighted.
    pub weight: u32,
    /// 1 when the update was within the norm before it was clipped, else -1, where the plan asks; 0 where it does not.
    pub vote: i8,
    /// What was measured on the way.
    pub metrics: Option<Metrics>,
    /// What an external learner measured beside that, in the order of [`Spec::further_metrics`](crate::Spec::further_metrics): not a number where it
    /// measured none. Empty where the plan names none.
    pub further: Vec<f64>,
    /// The values, in the order that the task expects.
    pub blocks: Vec<Block>,
}

impl Contribution {
    /// Blocks alone.
    pub fn of(blocks: Vec<Block>) -> Self {
        Self { weight: 1, vote: 0, metrics: None, further: Vec::new(), blocks }
    }

    /// The values of the block that is called so.
    pub fn block(&self, name: &Name) -> Option<&Values> {
        self.blocks.iter().find(|block| block.name == *name).map(|block| &block.values)
    }

    /// The points of an update.
    pub fn points(&self) -> Option<&[i32]> {
        match self.block(&UPDATE) {
            Some(Values::I32(points)) => Some(points),
            _ => None,
        }
    }

    /// The words of sums.
    pub fn words(&self) -> Option<&[i64]> {
        match self.block(&SUMS) {
            Some(Values::I64(words)) => Some(words),
            _ => None,
        }
    }

    /// The points of an update, given away; `None` when there is another block or none.
    pub fn into_points(self) -> Option<Vec<i32>> {
        let [block] = <[Block; 1]>::try_from(self.blocks).ok()?;
        match block.values {
            Values::I32(points) if block.name == UPDATE => Some(points),
            _ => None,
        }
    }
}

impl fmt::Debug for Contribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, weight {}", self.blocks, self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: Name, dtype: DType, len: u64) -> BlockHead {
        BlockHead { name, dtype, len }
    }

    #[test]
    fn blocks_are_compared_by_name_type_and_length() {
        let spec = PayloadSpec::update(3, UpdateCodec::Exact);
        assert_eq!(spec.check(&[head(UPDATE, DType::I32, 3)]), Ok(()));
        assert_eq!(spec.check(&[]), Err(Rejection::WrongKind));
        assert_eq!(spec.check(&[head(SUMS, DType::I32, 3)]), Err(Rejection::WrongKind));
        assert_eq!(spec.check(&[head(UPDATE, DType::U32, 3)]), Err(Rejection::WrongKind));
        assert_eq!(spec.check(&[head(UPDATE, DType::I32, 2)]), Err(Rejection::WrongShape));
        assert_eq!(spec.check(&[head(UPDATE, DType::I32, u64::MAX)]), Err(Rejection::Oversize));
        assert_eq!(PayloadSpec::none().check(&[head(UPDATE, DType::I32, 3)]), Err(Rejection::WrongKind));
        let length = Length::AtMost(8);
        let bytes = PayloadSpec {
            blocks: vec![BlockSpec { name: Name::literal("key"), dtype: DType::U8, length }],
            codec: UpdateCodec::Exact,
        };
        assert_eq!(bytes.check(&[head(Name::literal("key"), DType::U8, 0)]), Ok(()));
        assert_eq!(bytes.check(&[head(Name::literal("key"), DType::U8, 9)]), Err(Rejection::Oversize));
    }

    #[test]
    fn a_length_that_no_machine_can_hold_has_no_bytes() {
        assert_eq!(head(UPDATE, DType::I32, u64::MAX).bytes(), None);
        assert_eq!(head(UPDATE, DType::I32, 3).bytes(), Some(12));
    }

    #[test]
    fn a_name_from_outside_is_plain() {
        assert!("k-means.assign".parse::<Name>().is_ok());
        for bad in ["", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
            assert!(serde_json::from_str::<Name>(&format!("\"{bad}\"")).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_contribution_holds_is_not_printed() {
        let told = format!("{:?}", Contribution::of(vec![Block::new(UPDATE, Values::I32(vec![77, 78]))]));
        assert_eq!(told, "[update (2 I32)], weight 1");
    }
}
