//! The pool against a plain model of itself.

use super::*;
use proptest::prelude::*;

const BLOCK_TOKENS: usize = 2;

impl KvBlocks {
    /// Panics unless every invariant of the module holds for these tables.
    fn check(&self, tables: &[Vec<BlockId>]) {
        let mut references = vec![0u32; self.total()];
        tables.iter().flatten().for_each(|&block| references[block as usize] += 1);
        for (id, block) in (0..).zip(&self.blocks) {
            assert_eq!(block.references, references[id as usize], "references of block {id}");
            let places = self.free.iter().filter(|&&b| b == id).count()
                + self.idle.values().filter(|&&b| b == id).count();
            assert_eq!(places, usize::from(block.references == 0), "lists that hold block {id}");
            assert!(!self.free.contains(&id) || block.content.is_none(), "free block {id} has content");
            if let Some(content) = &block.content {
                assert_eq!(
                    self.find(content.parent, &content.tokens),
                    Some(id),
                    "block {id} cannot be found"
                );
            }
        }
        let nodes = self.roots.len()
            + self.blocks.iter().filter_map(|b| b.content.as_ref()).map(|c| c.children.len()).sum::<usize>();
        assert_eq!(
            nodes,
            self.blocks.iter().filter(|b| b.content.is_some()).count(),
            "tree and blocks differ"
        );
    }
}

#[test]
fn equal_prefixes_share_blocks_and_survive_their_first_owner() {
    let mut pool = KvBlocks::new(4, 2);
    let first = pool.allocate().unwrap();
    let first = pool.publish(None, first, &[1, 2]);
    let second = pool.allocate().unwrap();
    let second = pool.publish(Some(first), second, &[3, 4]);
    assert_eq!(pool.find_prefix(&[1, 2, 3, 4, 5]), [first, second]);
    assert!(pool.find_prefix(&[3, 4]).is_empty());
    pool.release(&[first, second]);
    assert_eq!(pool.unreferenced(), 4);
    assert_eq!(pool.find_prefix(&[1, 2, 3, 4]), [first, second]);
}

#[test]
fn the_tail_of_the_least_recent_prefix_is_evicted_first() {
    let mut pool = KvBlocks::new(3, 1);
    let blocks: Vec<BlockId> = (0..3).map(|_| pool.allocate().unwrap()).collect();
    pool.publish(None, blocks[0], &[1]);
    pool.publish(Some(blocks[0]), blocks[1], &[2]);
    pool.publish(None, blocks[2], &[9]);
    pool.release(&blocks[..2]);
    pool.release(&blocks[2..]);
    assert_eq!(pool.allocate(), Some(blocks[1]));
    assert_eq!(pool.find_prefix(&[1, 2]), [blocks[0]]);
    assert_eq!(pool.allocate(), Some(blocks[0]));
    assert_eq!(pool.allocate(), Some(blocks[2]));
    assert_eq!(pool.allocate(), None);
}

#[test]
fn a_twin_is_merged_into_the_published_block() {
    let mut pool = KvBlocks::new(2, 1);
    let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    assert_eq!(pool.publish(None, a, &[5]), a);
    assert_eq!(pool.publish(None, b, &[5]), a);
    assert_eq!(pool.unreferenced(), 1);
    pool.release(&[a]);
    assert!(!pool.is_unreferenced(a));
    pool.release(&[a]);
    assert_eq!(pool.unreferenced(), 2);
}

/// One sequence's wish in the random test.
#[derive(Debug, Clone)]
enum Action {
    /// Start a sequence over these tokens, sharing what is cached.
    Open(Vec<TokenId>),
    /// End one.
    Close(prop::sample::Index),
}

fn any_action() -> impl Strategy<Value = Action> {
    // Two token values make shared prefixes the rule.
    prop_oneof![
        2 => prop::collection::vec(0u32..2, 0..9).prop_map(Action::Open),
        1 => any::<prop::sample::Index>().prop_map(Action::Close),
    ]
}

proptest! {
    #[test]
    fn no_block_leaks_and_found_prefixes_are_true(actions in prop::collection::vec(any_action(), 0..80), total in 1u32..12) {
        let mut pool = KvBlocks::new(total, BLOCK_TOKENS as u32);
        // What each block was last written with, prefix included: the truth that sharing must respect.
        let mut written: HashMap<BlockId, Vec<TokenId>> = HashMap::new();
        let mut tables: Vec<Vec<BlockId>> = Vec::new();
        for action in actions {
            match action {
                Action::Open(tokens) => {
                    let mut table = pool.find_prefix(&tokens);
                    for (index, block) in table.iter().enumerate() {
                        prop_assert_eq!(&written[block], &tokens[..(index + 1) * BLOCK_TOKENS]);
                        pool.retain(*block);
                    }
                    while table.len() < tokens.len() / BLOCK_TOKENS {
                        let Some(block) = pool.allocate() else { break };
                        prop_assert!(!tables.iter().flatten().any(|&other| other == block), "referenced block evicted");
                        let end = (table.len() + 1) * BLOCK_TOKENS;
                        written.insert(block, tokens[..end].to_vec());
                        let part = &tokens[end - BLOCK_TOKENS..end];
                        let block = pool.publish(table.last().copied(), block, part);
                        table.push(block);
                    }
                    tables.push(table);
                }
                Action::Close(index) if !tables.is_empty() => {
                    let table = tables.swap_remove(index.index(tables.len()));
                    pool.release(&table);
                }
                Action::Close(_) => {}
            }
            pool.check(&tables);
        }
        for table in tables.drain(..) {
            pool.release(&table);
        }
        pool.check(&tables);
        prop_assert_eq!(pool.unreferenced(), total as usize);
    }
}
