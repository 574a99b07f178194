//! Which group of layers has which layer of a model, and which layers read another's keys and
//! values.

use crate::error::{Error, Result};
use std::fmt;

/// Where a layer of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub group: usize,
    /// Its number in the group's plan.
    pub index: u32,
    /// The layer whose keys and values it reads, if not its own.
    pub shares: Option<u32>,
}

/// The layers of a model, by their numbers there and by group.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerMap {
    /// By group: the model's numbers of its layers.
    pub groups: Vec<Vec<u32>>,
    /// By layer of the model.
    places: Vec<Place>,
}

impl LayerMap {
    /// Puts every layer in its place. `shared` has layers that read another's keys and values, and
    /// whose.
    pub fn new(groups: Vec<Vec<u32>>, shared: &[(u32, u32)]) -> Result<Self> {
        if groups.is_empty() {
            return Err(Error::argument("groups of layers", "1 or more", 0));
        }
        if let Some(group) = groups.iter().position(Vec::is_empty) {
            return Err(Error::argument(format!("layers of group {group}"), "1 or more", 0));
        }
        // Each layer must be named once, so none has a number beyond their count.
        let count = groups.iter().map(Vec::len).sum::<usize>() + shared.len();
        let mut places: Vec<Option<Place>> = vec![None; count];
        let mut beyond = None;
        for (group, layers) in groups.iter().enumerate() {
            for (index, layer) in (0..).zip(layers) {
                match places.get_mut(*layer as usize) {
                    Some(Some(first)) => {
                        let had = if first.group == group { format!("twice in group {group}") } else { format!("in groups {} and {group}", first.group) };
                        return Err(in_one(*layer, had));
                    }
                    Some(place) => *place = Some(Place { group, index, shares: None }),
                    None => beyond = beyond.max(Some(*layer)),
                }
            }
        }
        for (layer, of) in shared {
            let own = places.get(*of as usize).copied().flatten().filter(|place| place.shares.is_none());
            let Some(own) = own.filter(|_| of < layer) else {
                return Err(Error::argument(format!("the layer that layer {layer} shares"), "an earlier one, which is in a group", of));
            };
            match places.get_mut(*layer as usize) {
                Some(Some(Place { group, shares: None, .. })) => return Err(in_one(*layer, format!("in group {group} and sharing layer {of}"))),
                Some(Some(Place { shares: Some(first), .. })) => return Err(in_one(*layer, format!("sharing layers {first} and {of}"))),
                Some(place) => *place = Some(Place { shares: Some(*of), ..own }),
                None => beyond = beyond.max(Some(*layer)),
            }
        }
        if let (Some(beyond), Some(missing)) = (beyond, places.iter().position(Option::is_none)) {
            return Err(in_one(missing as u32, format!("in none, though there is a layer {beyond}")));
        }
        Ok(Self { groups, places: places.into_iter().flatten().collect() })
    }

    /// Returns how many layers the model has.
    pub fn count(&self) -> u32 {
        self.places.len() as u32
    }

    /// Returns where a layer is.
    pub fn find(&self, layer: u32) -> Result<Place> {
        self.places.get(layer as usize).copied().ok_or(Error::Layer { had: layer, layers: self.count() })
    }

    /// Returns the model's number of a group's layer.
    pub fn layer(&self, group: usize, index: u32) -> u32 {
        self.groups.get(group).and_then(|layers| layers.get(index as usize)).copied().unwrap_or(index)
    }

    /// Returns an error of a group's cache with the model's number of the layer that it names.
    pub fn named(&self, group: usize, error: Error) -> Error {
        let of = |index| self.layer(group, index);
        match error {
            Error::Unelected { layer, sinks } => Error::Unelected { layer: of(layer), sinks },
            Error::Order { call, layer, wanted, had } => Error::Order { call, layer: of(layer), wanted, had },
            Error::Torn { slot, layer, whole } => Error::Torn { slot, layer: of(layer), whole },
            error => error,
        }
    }

    /// Returns, by layer that has none of its own, whose keys and values it reads.
    pub fn shared(&self) -> impl Iterator<Item = (u32, u32)> {
        (0..).zip(&self.places).filter_map(|(layer, place)| place.shares.map(|of| (layer, of)))
    }
}

/// Returns the error that a layer is not in one group.
fn in_one(layer: u32, had: String) -> Error {
    Error::argument(format!("layer {layer}"), "in one group", had)
}

/// The numbers of layers as a text: "layers 0-4, 6".
pub(super) struct Layers<'a>(pub &'a [u32]);

impl fmt::Display for Layers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = if let [_] = self.0 { "layer" } else { "layers" };
        for run in self.0.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            match run {
                [first, .., last] => write!(f, "{text} {first}-{last}")?,
                [one] => write!(f, "{text} {one}")?,
                [] => {}
            }
            text = ",";
        }
        Ok(())
    }
}
