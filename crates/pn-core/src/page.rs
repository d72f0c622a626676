//! Lists in pages, as the product shows them.

/// Why there is no such page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// Pages are numbered from 1.
    #[error("there is no page 0: pages are numbered from 1")]
    Zero,
    /// A page holds some items, and not too many.
    #[error("a page of {per_page} items: 1 to {max} are allowed", max = PageRequest::MAX_PER_PAGE)]
    PerPage {
        /// What was asked for.
        per_page: u32,
    },
}

/// Which page of a list is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    page: u32,
    per_page: u32,
}

impl PageRequest {
    /// The most items a page may have.
    pub const MAX_PER_PAGE: u32 = 50;

    /// Asks for a page, from 1, of so many items, from 1 to 50.
    ///
    /// # Errors
    /// [`PageError`].
    pub const fn new(page: u32, per_page: u32) -> Result<Self, PageError> {
        if page == 0 {
            return Err(PageError::Zero);
        }
        if per_page == 0 || per_page > Self::MAX_PER_PAGE {
            return Err(PageError::PerPage { per_page });
        }
        Ok(Self { page, per_page })
    }

    /// Takes the page out of a list. A page behind the last is empty.
    #[must_use]
    pub fn of<T>(self, list: Vec<T>) -> Page<T> {
        let total_count = list.len();
        let total_pages = u32::try_from(total_count.div_ceil(self.per_page as usize)).unwrap_or(u32::MAX).max(1);
        let skipped = (self.page as usize - 1).saturating_mul(self.per_page as usize);
        let items = list.into_iter().skip(skipped).take(self.per_page as usize).collect();
        Page {
            items,
            current_page: self.page,
            prev_page: (self.page > 1).then(|| (self.page - 1).min(total_pages)),
            next_page: (self.page < total_pages).then(|| self.page + 1),
            total_pages,
            total_count,
        }
    }
}

impl Default for PageRequest {
    /// The first page, of 20 items.
    fn default() -> Self {
        Self { page: 1, per_page: 20 }
    }
}

/// A part of a list, and where it stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// Which page it is, from 1.
    pub current_page: u32,
    /// The page before it, if there is one.
    pub prev_page: Option<u32>,
    /// The page after it, if there is one.
    pub next_page: Option<u32>,
    /// How many pages there are, at least 1.
    pub total_pages: u32,
    /// How many items there are on all pages.
    pub total_count: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(count: u32, page: u32, per_page: u32, expected: (&[u32], Option<u32>, Option<u32>, u32)) {
        let found = PageRequest::new(page, per_page).unwrap().of((1..=count).collect());
        let (items, prev, next, pages) = expected;
        assert_eq!(found.items, items);
        assert_eq!((found.prev_page, found.next_page, found.total_pages), (prev, next, pages));
        assert_eq!((found.current_page, found.total_count), (page, count as usize));
    }

    #[test]
    fn pages_are_cut_as_the_product_cuts_them() {
        check(0, 1, 20, (&[], None, None, 1));
        check(5, 1, 2, (&[1, 2], None, Some(2), 3));
        check(5, 2, 2, (&[3, 4], Some(1), Some(3), 3));
        check(5, 3, 2, (&[5], Some(2), None, 3));
        check(4, 2, 2, (&[3, 4], Some(1), None, 2));
        check(5, 9, 2, (&[], Some(3), None, 3));
        assert_eq!(PageRequest::default(), PageRequest::new(1, 20).unwrap());
    }

    #[test]
    fn what_is_no_page_is_refused() {
        assert_eq!(PageRequest::new(0, 20), Err(PageError::Zero));
        for per_page in [0, 51, u32::MAX] {
            assert_eq!(PageRequest::new(1, per_page), Err(PageError::PerPage { per_page }));
        }
    }
}
