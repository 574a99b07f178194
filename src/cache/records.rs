//! The records of the tables as the kernels read them, one type for each list.

/// A token of this number and more stands for a row of the elected sinks.
pub(super) const SINK_ROW: u32 = 1 << 31;

macro_rules! record {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ty,)+ }) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub(super) struct $name { $($(#[$doc])* pub $field: $kind,)+ }
    };
}

record! {
    /// An item of `append` and `append_block` (a block of tokens) or of `append_reordered` (four
    /// tokens).
    PackItem {
        /// The chunk's record.
        record: u32,
        block: u32,
    }
}

record! {
    /// An item of `protect`.
    ProtectItem {
        /// The chunk's record.
        record: u32,
        /// A token, or a row of the elected sinks from [`SINK_ROW`] on.
        token: u32,
    }
}

record! {
    /// Rows of the residual stream that a workgroup of `elect` searches.
    ElectRows {
        /// First row of the step.
        first: u32,
        rows: u32,
        /// Its position.
        token: u32,
        pad: u32,
    }
}

record! {
    /// A chunk whose blocks `elect` merges.
    ElectChunk {
        slot: u32,
        first_block: u32,
        blocks: u32,
        /// Sinks elected before from this token on are void.
        limit: u32,
        old_tokens: u32,
        new_tokens: u32,
        pad: [u32; 2],
    }
}

record! {
    /// An item of `attend_split`: a slice of the pages of a decoding row.
    SplitItem {
        /// The row of the pass.
        row: u32,
        /// Where page 0 would be in the list of pages.
        list: u32,
        first_page: u32,
        end_page: u32,
        /// First token that the row sees in pages.
        visible: u32,
        /// Tokens before this one lie in pages.
        packed: u32,
        /// The place of page 0 among scores or terms, where pages have places of their own.
        place: u32,
        limit: u32,
        slot: u32,
    }
}

record! {
    /// An item of `unpack`: a tile of 32 tokens.
    UnpackItem {
        /// The chunk's record.
        record: u32,
        tile: u32,
        /// Where tiles of tokens begin again after those of the sinks; 0 where they are those of
        /// all tokens.
        after: u32,
        /// Where it goes among the round's tiles.
        place: u32,
    }
}

record! {
    /// An item of `attend_prefill` or `attend_matrices`: a tile of rows over tiles of tokens.
    PrefillItem {
        /// The chunk's record.
        record: u32,
        /// First query of the chunk.
        first: u32,
        tokens: u32,
        /// First row of the pass.
        row: u32,
        /// As in [`UnpackItem`].
        after: u32,
        first_tile: u32,
        end_tile: u32,
        /// The first tile's place among the round's.
        unpacked: u32,
        /// Where the partial results go: of the first query, and from one query's to the next.
        partial: u32,
        partials: u32,
        pad: [u32; 2],
    }
}

record! {
    /// An item of `attend_rows`: a slice of the f16 rows of a decoding row.
    RowsItem {
        /// The chunk's record.
        record: u32,
        /// The row of the pass.
        row: u32,
        /// Its position.
        position: u32,
        /// First token that it sees.
        visible: u32,
        /// Sinks that would lie in pages: the first places.
        sinks: u32,
        first_tile: u32,
        end_tile: u32,
        /// Where the partial results go.
        partial: u32,
    }
}

record! {
    /// An item of `position`: pages of a decoding row.
    PositionItem {
        row: u32,
        first_page: u32,
        end_page: u32,
        /// Where the terms of page 0 would be.
        place: u32,
    }
}

record! {
    /// A row of `align_plan`.
    AlignRow {
        row: u32,
        /// Where the first page that it sees is listed.
        list: u32,
        pages: u32,
        /// Its first page's place among the scores.
        place: u32,
        /// Its items of `align_scores`.
        first_split: u32,
        splits: u32,
        /// Its partial results of `attend_rows`.
        first_partial: u32,
        partials: u32,
    }
}

record! {
    /// A row of `attend_merge`: its partial results.
    MergeRow {
        first_split: u32,
        splits: u32,
        first_partial: u32,
        partials: u32,
        /// 1 where the cache has the sequence's first token, so that sink logits count.
        first: u32,
    }
}
