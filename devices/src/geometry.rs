//! Cylinders, heads and sectors: what a disk says of itself to software that still counts by them.

/// A geometry. What it makes together need not be the length of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// How many cylinders, 1 or more.
    pub cylinders: u16,
    /// Heads, 1 or more.
    pub heads: u8,
    /// Sectors of a track, 1 or more.
    pub sectors: u8,
}

/// A number of a geometry is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} must be between 1 and {most}, not {came}; cyls, heads and secs go together")]
pub struct GeometryError {
    name: &'static str,
    most: u32,
    came: u32,
}

impl Geometry {
    /// Of numbers that may be anything; `None` of nothing but zeroes.
    ///
    /// # Errors
    /// A number is out of range, or is missing.
    pub fn new(cyls: u32, heads: u32, secs: u32) -> Result<Option<Self>, GeometryError> {
        if [cyls, heads, secs] == [0; 3] {
            return Ok(None);
        }
        Ok(Some(Self {
            cylinders: number("cyls", u16::MAX.into(), cyls)?,
            heads: number("heads", u8::MAX.into(), heads)?,
            sectors: number("secs", u8::MAX.into(), secs)?,
        }))
    }
}

fn number<T: TryFrom<u32>>(name: &'static str, most: u32, came: u32) -> Result<T, GeometryError> {
    let number = T::try_from(came).ok().filter(|_| came > 0);
    number.ok_or(GeometryError { name, most, came })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_geometry_is_whole_or_not_there() {
        assert_eq!(Geometry::new(0, 0, 0), Ok(None));
        let whole = Geometry {
            cylinders: 65535,
            heads: 255,
            sectors: 1,
        };
        assert_eq!(Geometry::new(65535, 255, 1), Ok(Some(whole)));
        let refused = |cyls, heads, secs| Geometry::new(cyls, heads, secs).unwrap_err().to_string();
        assert!(refused(3, 0, 0).starts_with("heads must be between 1 and 255, not 0;"));
        assert!(refused(70000, 1, 1).starts_with("cyls must be between 1 and 65535, not 70000;"));
        assert!(refused(1, 1, 256).starts_with("secs must be between 1 and 255, not 256;"));
    }
}
