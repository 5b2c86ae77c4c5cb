/* Memory, strings, numbers, checksums. The compiler may call mem*() on its own, hence their plain names. */
#include "lib.h"

void *memset(void *to, int byte, size_t length)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t length)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length)::"memory");
    return start;
}

void *memmove(void *to, const void *from, size_t length)
{
    if ((u64)to - (u64)from >= length)
        return memcpy(to, from, length);
    for (size_t i = length; i-- > 0;) /* `to` lies inside of the source: from the end */
        ((volatile u8 *)to)[i] = ((const u8 *)from)[i];
    return to;
}

int memcmp(const void *a, const void *b, size_t length)
{
    const u8 *x = a, *y = b;
    for (size_t i = 0; i < length; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *s)
{
    size_t length = 0;
    while (s[length])
        length++;
    return length;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (u8)*a - (u8)*b;
}

bool starts_with(const char *s, const char *prefix)
{
    while (*prefix)
        if (*s++ != *prefix++)
            return false;
    return true;
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

bool parse_number(const char *s, u64 *value)
{
    u64 result = 0;
    int base = 10, digits = 0;
    if (s[0] == '0' && (s[1] | 0x20) == 'x')
        base = 16, s += 2;
    for (; digit_of(*s) < base; s++, digits++)
        result = result * (u64)base + (u64)digit_of(*s);
    switch (*s | 0x20) {
    case 'g': result <<= 10; /* fall through */
    case 'm': result <<= 10; /* fall through */
    case 'k': result <<= 10; s++;
    }
    *value = result;
    return digits > 0 && *s == 0;
}

struct output {
    char *to;
    size_t size, length;
};

static void put(struct output *out, char c)
{
    if (out->length + 1 < out->size)
        out->to[out->length++] = c;
}

static void put_padded(struct output *out, const char *s, size_t length, size_t width, bool left, char pad)
{
    for (size_t i = length; !left && i < width; i++)
        put(out, pad);
    for (size_t i = 0; i < length; i++)
        put(out, s[i]);
    for (size_t i = length; left && i < width; i++)
        put(out, ' ');
}

static size_t number_text(char *end, u64 value, unsigned base)
{
    size_t length = 0;
    do {
        *--end = "0123456789abcdef"[value % base];
        length++;
    } while (value /= base);
    return length;
}

size_t format_list(char *to, size_t size, const char *format, va_list list)
{
    struct output out = {to, size, 0};
    for (; *format; format++) {
        if (*format != '%') {
            put(&out, *format);
            continue;
        }
        bool left = false, is_long = false;
        char pad = ' ';
        size_t width = 0, length;
        char digits[24], *end = digits + sizeof digits, c;
        for (format++; *format == '-' || *format == '0'; format++)
            *format == '-' ? (left = true) : (pad = '0');
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (size_t)(*format - '0');
        for (; *format == 'l'; format++)
            is_long = true;
        switch (*format) {
        case 's': {
            const char *s = va_arg(list, const char *);
            put_padded(&out, s, strlen(s), width, left, ' ');
            break;
        }
        case 'c':
            c = (char)va_arg(list, int);
            put_padded(&out, &c, 1, width, left, ' ');
            break;
        case 'd': {
            long value = is_long ? va_arg(list, long) : va_arg(list, int);
            length = number_text(end, value < 0 ? -(u64)value : (u64)value, 10);
            if (value < 0)
                *(end - ++length) = '-';
            put_padded(&out, end - length, length, width, left, ' ');
            break;
        }
        case 'p':
            is_long = true; /* fall through */
        case 'x':
        case 'u':
            length = number_text(end, is_long ? va_arg(list, u64) : va_arg(list, u32), *format == 'u' ? 10 : 16);
            put_padded(&out, end - length, length, width, left, pad);
            break;
        case 0:
            format--;
            break;
        default:
            put(&out, *format);
        }
    }
    if (size)
        to[out.length] = 0;
    return out.length;
}

size_t format(char *to, size_t size, const char *text, ...)
{
    va_list list;
    va_start(list, text);
    size_t length = format_list(to, size, text, list);
    va_end(list);
    return length;
}

u32 fnv1a(u32 hash, const void *data, size_t length)
{
    const u8 *byte = data;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ byte[i]) * 0x01000193u;
    return hash;
}

u64 random_next(u64 *state)
{
    u64 x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dull;
}
