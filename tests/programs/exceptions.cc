// C++ exceptions in flight: thrown and caught all the time in several threads, one of them being unwound through a
// destructor that waits for the word to go on, nested ones, rethrown ones and exception_ptr.
#include "check.h"
#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static std::atomic<int> finish{0}, in_flight{0};
static std::atomic<long> rounds{0};

struct Waits { // its destructor runs while an exception passes
    int value;
    ~Waits()
    {
        if (std::uncaught_exceptions() != 1)
            FAIL("%d exceptions in flight", std::uncaught_exceptions());
        in_flight = 1;
        while (!finish)
            std::this_thread::yield();
        if (std::uncaught_exceptions() != 1 || value != 42)
            FAIL("%d exceptions in flight afterwards", std::uncaught_exceptions());
    }
};
static void throws(int depth, long what)
{
    std::string local = "frame " + std::to_string(depth);
    if (depth == 0)
        throw std::runtime_error(std::to_string(what));
    try {
        throws(depth - 1, what);
    } catch (const std::logic_error &) {
        FAIL("wrong handler");
    }
}
static void churn()
{
    for (long i = 0; !finish; i++) {
        try {
            throws((int)(i % 30), i);
            FAIL("nothing was thrown");
        } catch (const std::exception &e) {
            long want = WRONG(1) && i > 100 ? i + 1 : i;
            if (std::stol(e.what()) != want)
                FAIL("caught %s, thrown %ld", e.what(), want);
            try {
                std::throw_with_nested(std::out_of_range("outer"));
            } catch (const std::exception &outer) {
                try {
                    std::rethrow_if_nested(outer);
                    FAIL("nothing was nested");
                } catch (const std::runtime_error &inner) {
                    if (std::stol(inner.what()) != i)
                        FAIL("nested exception");
                }
            }
        }
        rounds++;
    }
}
int main(int argc, char **argv)
{
    begin(argc, argv);
    std::exception_ptr kept;
    try {
        throw 4711;
    } catch (...) {
        kept = std::current_exception();
    }
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++)
        threads.emplace_back(churn);
    threads.emplace_back([] {
        try {
            Waits w{42};
            throw std::string("through a destructor");
        } catch (const std::string &s) {
            if (s != "through a destructor")
                FAIL("exception in flight: %s", s.c_str());
        }
    });
    UNTIL(in_flight && rounds > 100, 10, "exceptions");
    ready();
    wait_go();
    long before = rounds;
    UNTIL(rounds > before + 200, 10, "exceptions afterwards");
    finish = 1;
    for (auto &t : threads)
        t.join();
    try {
        std::rethrow_exception(kept);
    } catch (int n) {
        SAME(n, 4711, "kept exception");
    }
    ok();
}
