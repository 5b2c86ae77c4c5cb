/* scroll.h */
#include "scroll.h"

#include <string.h>

#pragma GCC push_options
#pragma GCC optimize("O3")

#define DAMAGE_MIN 32u        /* tiles; less is not worth a search, nor worth a copy */
#define VOTES_MIN 48u         /* lines of tiles that agree on a distance */
#define TABLE_BITS 12u        /* of lines of a column: more than twice as many as there are */
#define TABLE_SIZE (1u << TABLE_BITS)
#define AMBIGUOUS 0x8000u     /* beside the number of a line: it is there more than once, as empty ones are */

typedef uint64_t __attribute__((aligned(1), may_alias)) loose_u64;

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
    return hash ^ hash >> 29;
}

static uint64_t line_hash(const uint8_t *line, uint32_t pixels, uint64_t key)
{
    uint64_t a = key, b = key + 1, c = key + 2, d = key + 3;
    uint32_t at = 0, bytes = 4 * pixels;
    const loose_u64 *words = (const loose_u64 *)line;
    for (; at + 32 <= bytes; at += 32, words += 4) {
        a = mix(a, words[0]);
        b = mix(b, words[1]);
        c = mix(c, words[2]);
        d = mix(d, words[3]);
    }
    for (; at < bytes; at += 4)
        a = mix(a, *(const tvmm_pixel *)(line + at));
    return mix(mix(a, b), mix(c, d));
}

#pragma GCC pop_options

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t columns_of(const struct tvmm_scroll_finder *finder)
{
    return (finder->width + TVMM_TILE_WIDTH - 1) / TVMM_TILE_WIDTH;
}

static uint32_t rows_of(const struct tvmm_scroll_finder *finder)
{
    return (finder->height + TVMM_TILE_HEIGHT - 1) / TVMM_TILE_HEIGHT;
}

static uint32_t column_width(const struct tvmm_scroll_finder *finder, uint32_t column)
{
    return smaller(TVMM_TILE_WIDTH, finder->width - column * TVMM_TILE_WIDTH);
}

static uint64_t pixel_at(const struct tvmm_scroll_finder *finder, uint32_t x, uint32_t y)
{
    return 4 * ((uint64_t)y * finder->width + x);
}

/* Hashes of the damaged tiles into `now`. How many tiles those are. */
static uint32_t hash_damage(struct tvmm_scroll_finder *finder, const uint8_t *canvas, const uint8_t *damage)
{
    uint32_t count = 0, columns = columns_of(finder), rows = rows_of(finder);
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t column = 0; column < columns; column++) {
            if (!damage[row * columns + column])
                continue;
            uint32_t top = row * TVMM_TILE_HEIGHT, bottom = smaller(top + TVMM_TILE_HEIGHT, finder->height);
            for (uint32_t y = top; y < bottom; y++)
                finder->now[column][y] = line_hash(canvas + pixel_at(finder, column * TVMM_TILE_WIDTH, y),
                                                   column_width(finder, column), finder->key);
            count++;
        }
    return count;
}

/* The slot of a line of that hash, or the free one where it would be. */
static uint32_t find_line(const uint16_t *table, const uint64_t *hashes, uint64_t hash)
{
    uint32_t slot = hash >> (64 - TABLE_BITS);
    while (table[slot] && hashes[(table[slot] & ~AMBIGUOUS) - 1] != hash)
        slot = (slot + 1) % TABLE_SIZE;
    return slot;
}

/* Each line that changed, and that was in one other place, votes for the distance. */
static void vote(struct tvmm_scroll_finder *finder, uint32_t column)
{
    const uint64_t *old = finder->old[column], *now = finder->now[column];
    uint16_t table[TABLE_SIZE]; /* number of a line plus 1 */
    uint32_t slot;
    if (!memcmp(old, now, finder->height * sizeof *old))
        return;
    memset(table, 0, sizeof table);
    for (uint32_t y = 0; y < finder->height; y++) {
        slot = find_line(table, old, old[y]);
        table[slot] = table[slot] ? table[slot] | AMBIGUOUS : (uint16_t)(y + 1);
    }
    for (uint32_t y = 0; y < finder->height; y++) {
        if (now[y] == old[y])
            continue;
        slot = find_line(table, old, now[y]);
        if (table[slot] && !(table[slot] & AMBIGUOUS))
            finder->votes[TVMM_SCREEN_HEIGHT_MAX + table[slot] - 1 - y]++;
    }
}

/* By how many lines what is there now was further down; 0: nothing moved. */
static int32_t find_distance(struct tvmm_scroll_finder *finder)
{
    uint32_t best = TVMM_SCREEN_HEIGHT_MAX;
    memset(finder->votes, 0, sizeof finder->votes);
    for (uint32_t column = 0; column < columns_of(finder); column++)
        vote(finder, column);
    for (uint32_t at = 0; at < 2 * TVMM_SCREEN_HEIGHT_MAX; at++)
        if (finder->votes[at] > finder->votes[best])
            best = at;
    return finder->votes[best] >= VOTES_MIN ? (int32_t)best - (int32_t)TVMM_SCREEN_HEIGHT_MAX : 0;
}

static void mark_alike(struct tvmm_scroll_finder *finder, int32_t distance)
{
    int32_t height = (int32_t)finder->height;
    for (uint32_t column = 0; column < columns_of(finder); column++)
        for (int32_t y = 0; y < height; y++) {
            int32_t from = y + distance;
            finder->alike[column][y] = from >= 0 && from < height && finder->now[column][y] == finder->old[column][from];
        }
}

/* The longest run of rows of whole tiles that moved in a column. */
static void longest_run(const struct tvmm_scroll_finder *finder, uint32_t column, uint32_t *first, uint32_t *end)
{
    uint32_t start = 0, rows = rows_of(finder);
    *first = *end = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t top = row * TVMM_TILE_HEIGHT, lines = smaller(TVMM_TILE_HEIGHT, finder->height - top);
        if (memchr(&finder->alike[column][top], 0, lines)) {
            start = row + 1;
            continue;
        }
        if (row + 1 - start > *end - *first) {
            *first = start;
            *end = row + 1;
        }
    }
}

/* Columns side by side and the rows that all of them have, of the largest area. In tiles. */
static uint32_t largest_rect(const struct tvmm_scroll_finder *finder, struct tvmm_scroll *best)
{
    uint32_t first[TVMM_SCROLL_COLUMNS], end[TVMM_SCROLL_COLUMNS], columns = columns_of(finder), most = 0;
    for (uint32_t column = 0; column < columns; column++)
        longest_run(finder, column, &first[column], &end[column]);
    for (uint32_t left = 0; left < columns; left++) {
        uint32_t top = first[left], bottom = end[left];
        for (uint32_t right = left; right < columns; right++) {
            top = first[right] > top ? first[right] : top;
            bottom = smaller(bottom, end[right]);
            if (bottom <= top)
                break;
            if ((right + 1 - left) * (bottom - top) <= most)
                continue;
            most = (right + 1 - left) * (bottom - top);
            *best = (struct tvmm_scroll){left, top, right + 1 - left, bottom - top, 0};
        }
    }
    return most;
}

static uint32_t damage_in(const struct tvmm_scroll_finder *finder, const uint8_t *damage, const struct tvmm_scroll *tiles)
{
    uint32_t count = 0;
    for (uint32_t row = tiles->y; row < tiles->y + tiles->height; row++)
        for (uint32_t column = tiles->x; column < tiles->x + tiles->width; column++)
            count += damage[row * columns_of(finder) + column];
    return count;
}

static void forget(struct tvmm_scroll_finder *finder, const struct tvmm_scroll *tiles)
{
    uint32_t top = tiles->y * TVMM_TILE_HEIGHT;
    uint32_t bottom = smaller(top + tiles->height * TVMM_TILE_HEIGHT, finder->height);
    for (uint32_t column = tiles->x; column < tiles->x + tiles->width; column++)
        memset(&finder->alike[column][top], 0, bottom - top);
}

static int is_copy(const struct tvmm_scroll_finder *finder, const uint8_t *canvas, const struct tvmm_scroll *scroll)
{
    for (uint32_t y = 0; y < scroll->height; y++)
        if (memcmp(canvas + pixel_at(finder, scroll->x, scroll->y + y),
                   finder->previous + pixel_at(finder, scroll->x, scroll->source_y + y), 4ull * scroll->width))
            return 0;
    return 1;
}

/* What moves up is copied from the top, and down from the bottom: no copy overwrites what a later one is made from. */
static void sort_found(struct tvmm_scroll *found, int32_t count, int32_t distance)
{
    for (int32_t at = 1; at < count; at++)
        for (int32_t to = at; to > 0; to--) {
            int later = distance > 0 ? found[to - 1].y > found[to].y : found[to - 1].y < found[to].y;
            if (!later)
                break;
            struct tvmm_scroll kept = found[to];
            found[to] = found[to - 1];
            found[to - 1] = kept;
        }
}

static int32_t find_scrolls(struct tvmm_scroll_finder *finder, const uint8_t *canvas, const uint8_t *damage)
{
    int32_t count = 0, distance = find_distance(finder);
    struct tvmm_scroll tiles;
    if (!distance)
        return 0;
    mark_alike(finder, distance);
    for (uint32_t tries = 0; tries < TVMM_SCROLLS_MAX && largest_rect(finder, &tiles); tries++) {
        forget(finder, &tiles);
        if (damage_in(finder, damage, &tiles) < DAMAGE_MIN)
            continue;
        struct tvmm_scroll scroll = {tiles.x * TVMM_TILE_WIDTH, tiles.y * TVMM_TILE_HEIGHT, 0, 0, 0};
        scroll.width = smaller(tiles.width * TVMM_TILE_WIDTH, finder->width - scroll.x);
        scroll.height = smaller(tiles.height * TVMM_TILE_HEIGHT, finder->height - scroll.y);
        scroll.source_y = (uint32_t)((int32_t)scroll.y + distance);
        if (is_copy(finder, canvas, &scroll))
            finder->found[count++] = scroll;
    }
    sort_found(finder->found, count, distance);
    return count;
}

static void keep_damage(struct tvmm_scroll_finder *finder, const uint8_t *canvas, const uint8_t *damage)
{
    uint32_t columns = columns_of(finder), rows = rows_of(finder);
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t column = 0; column < columns; column++) {
            uint32_t end = column, top = row * TVMM_TILE_HEIGHT, bottom = smaller(top + TVMM_TILE_HEIGHT, finder->height);
            while (end < columns && damage[row * columns + end])
                end++;
            if (end == column)
                continue;
            uint32_t x = column * TVMM_TILE_WIDTH, right = smaller(end * TVMM_TILE_WIDTH, finder->width);
            for (uint32_t y = top; y < bottom; y++)
                memcpy(finder->previous + pixel_at(finder, x, y), canvas + pixel_at(finder, x, y), 4ull * (right - x));
            for (; column < end; column++)
                memcpy(&finder->old[column][top], &finder->now[column][top], (bottom - top) * sizeof(uint64_t));
        }
}

int32_t tvmm_scroll_update(struct tvmm_scroll_finder *finder, const uint8_t *canvas, uint64_t canvas_size,
                           const uint8_t *damage, uint64_t damage_size)
{
    int32_t count = 0;
    if (!finder->width || finder->width > TVMM_SCREEN_WIDTH_MAX)
        return -1;
    if (!finder->height || finder->height > TVMM_SCREEN_HEIGHT_MAX)
        return -1;
    if (canvas_size != 4ull * finder->width * finder->height || finder->previous_size != canvas_size)
        return -1;
    if (damage_size != (uint64_t)columns_of(finder) * rows_of(finder))
        return -1;
    if (hash_damage(finder, canvas, damage) >= DAMAGE_MIN)
        count = find_scrolls(finder, canvas, damage);
    keep_damage(finder, canvas, damage);
    return count;
}
