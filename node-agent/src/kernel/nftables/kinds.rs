//! The kinds of attributes of our objects (include/uapi/linux/netfilter/nf_tables.h).

/// `enum nft_table_attributes`.
pub(super) mod table {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 2;
    pub(in super::super) const USES: u16 = 3;
    pub(in super::super) const USER_DATA: u16 = 6;
}

/// `enum nft_chain_attributes`, `enum nft_hook_attributes`.
pub(super) mod chain {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
}

/// `enum nft_rule_attributes`.
pub(super) mod rule {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
    pub(in super::super) const USER_DATA: u16 = 7;
}

/// `enum nft_set_attributes`.
pub(super) mod set {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LENGTH: u16 = 5;
    pub(in super::super) const ID: u16 = 10;
}

/// `enum nft_set_elem_list_attributes`, `enum nft_set_elem_attributes`, `enum nft_set_elem_flags`, `enum nft_data_attributes`.
pub(super) mod elements {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const SET: u16 = 2;
    pub(in super::super) const ELEMENTS: u16 = 3;
    pub(in super::super) const ELEMENT: u16 = 1;
    pub(in super::super) const KEY: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const INTERVAL_END: u32 = 1;
    pub(in super::super) const VALUE: u16 = 1;
}
