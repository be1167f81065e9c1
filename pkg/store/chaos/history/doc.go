// Package history records what clients asked of a store and what they were
// told, and checks that a single copy of the data, changed by one request at
// a time, could have answered so.
//
// Three things are judged together:
//
//   - Watches. What the watches of all nodes delivered is merged into one log
//     of changes, in which a revision stands for one change for ever. A watch
//     must deliver each revision of the log once, in order, without a gap.
//   - Requests that change something. An acknowledged one is in the log at the
//     revision it was told; a refused one is not. One whose outcome the client
//     never learned took effect if the log has it, at any time between the
//     call and its first sighting.
//   - Everything that was answered, by porcupine: there is an order of all
//     requests, in agreement with real time, in which each answer is right.
package history
