//! Bands of columns of a matrix, each written by a piece of work of its own.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::cpu::cleared;

/// Some columns of a matrix's rows, whose values nothing else can reach.
pub struct Band<'a> {
    start: *mut MaybeUninit<f32>,
    stride: usize,
    /// (rows, columns)
    size: (usize, usize),
    of: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: a band is a unique reference to its values, as a slice is.
unsafe impl Send for Band<'_> {}

impl<'a> Band<'a> {
    /// Rows of `columns` values, whole.
    pub fn whole(values: &'a mut [MaybeUninit<f32>], columns: usize) -> Self {
        let size = (values.len() / columns, columns);
        Band { start: values.as_mut_ptr(), stride: columns, size, of: PhantomData }
    }

    /// Rows of `width` values in bands of `columns`, from left to right; what is left over belongs to none.
    pub fn split(values: &'a mut [MaybeUninit<f32>], width: usize, columns: usize) -> impl Iterator<Item = Band<'a>> {
        let (start, rows) = (values.as_mut_ptr(), values.len() / width);
        let band = move |index| Band { start: start.wrapping_add(index * columns), stride: width, size: (rows, columns), of: PhantomData };
        (0..width / columns).map(band)
    }

    /// Row `index`, zero.
    pub fn row(&mut self, index: usize) -> &mut [f32] {
        let (rows, columns) = self.size;
        assert!(index < rows, "row {index} of {rows}");
        // SAFETY: the row's columns lie in the slice that the band was made of, and are no other band's.
        cleared(unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.stride), columns) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_write_their_own_columns() {
        let mut values = vec![MaybeUninit::new(7.0); 12];
        for (index, mut band) in Band::split(&mut values, 6, 2).enumerate() {
            band.row(0).fill(index as f32);
            band.row(1)[1] = 10.0 + index as f32;
        }
        Band::whole(&mut values[..6], 6).row(0)[5] = 5.0;
        let values: Vec<f32> = values.into_iter().map(|value| unsafe { value.assume_init() }).collect();
        assert_eq!(values, [0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 10.0, 0.0, 11.0, 0.0, 12.0]);
    }
}
