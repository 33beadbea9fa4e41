// plane.cuh: where an element of images that lie one after another stands.
#pragma once
#include "platform.cuh"

// Where element `i` of planes of height · width stands. Divisions of 32 bits where they do: they are the cost of a thread an element.
struct Place { u64 plane; u32 y, x; };
WS_FN Place place_of(u64 i, u32 height, u32 width) {
    if (i <= 0xFFFFFFFFu) {
        const u32 at = u32(i), row = at / width, plane = row / height;
        return {plane, row - plane * height, at - row * width};
    }
    const u64 row = i / width, plane = row / height;
    return {plane, u32(row - plane * height), u32(i - row * width)};
}
